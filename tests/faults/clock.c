/* An LD_PRELOAD: a wall clock that a file moves, while everything else tells the true time.
 *
 * CLOCK_OFFSET_FILE names a file of one int64_t, in this machine's byte order: seconds to add to what CLOCK_REALTIME
 * and its coarse form say. It is mapped, so a change is seen by the next call of every process at once.
 *
 * A deadline on that clock, as callers of sem_timedwait, pthread_cond_timedwait and the futex of gRPC's Abseil give
 * it, is turned back into the true time; the kernel would otherwise wait hours too long or not at all. The offset is
 * that of the moment when the wait begins: a jump during a wait is not felt by it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* libc's own function of this name. */
#define REAL(name)                                                                                                     \
    ({                                                                                                                 \
        static __typeof__(name) *found;                                                                                \
        if (!found)                                                                                                    \
            found = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);                                                       \
        found;                                                                                                         \
    })

static const int64_t none = 0;
static const volatile int64_t *offset_s = &none;

__attribute__((constructor)) static void map_offset(void)
{
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = open(path ? path : "", O_RDONLY | O_CLOEXEC);
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, file, 0);

    if (mapped == MAP_FAILED) {
        perror("clock.c: CLOCK_OFFSET_FILE cannot be mapped");
        _exit(1);
    }
    close(file);
    offset_s = mapped;
}

static int is_wall(clockid_t clock)
{
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

static struct timespec true_time(const struct timespec *deadline)
{
    struct timespec at = *deadline;

    if (__builtin_sub_overflow(deadline->tv_sec, *offset_s, &at.tv_sec))
        at.tv_sec = deadline->tv_sec; /* so far off that it means for ever */
    if (at.tv_sec < 0)
        at.tv_sec = 0; /* a futex refuses less; it is over either way */
    return at;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = REAL(clock_gettime)(clock, now);

    if (!failed && is_wall(clock))
        now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = REAL(gettimeofday)(now, zone);

    if (!failed)
        now->tv_sec += *offset_s;
    return failed;
}

time_t time(time_t *now)
{
    struct timespec coarse;

    clock_gettime(CLOCK_REALTIME_COARSE, &coarse);
    if (now)
        *now = coarse.tv_sec;
    return coarse.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline)
{
    struct timespec at = true_time(deadline);

    return REAL(sem_timedwait)(semaphore, &at);
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict deadline)
{
    struct timespec at = is_wall(clock) ? true_time(deadline) : *deadline;

    return REAL(sem_clockwait)(semaphore, clock, &at);
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline)
{
    /* glibc, nptl_internal: bit 1 of __wrefs is set where pthread_condattr_setclock chose CLOCK_MONOTONIC. */
    int monotonic = cond->__data.__wrefs & 2;
    struct timespec at = monotonic ? *deadline : true_time(deadline);

    return REAL(pthread_cond_timedwait)(cond, mutex, &at);
}

int pthread_cond_clockwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict deadline)
{
    struct timespec at = is_wall(clock) ? true_time(deadline) : *deadline;

    return REAL(pthread_cond_clockwait)(cond, mutex, clock, &at);
}

long syscall(long number, ...)
{
    long a[6];
    struct timespec at;
    va_list arguments;

    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (number == SYS_futex && a[3] && (a[1] & ~FUTEX_PRIVATE_FLAG) == (FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME)) {
        at = true_time((const struct timespec *)a[3]);
        a[3] = (long)&at;
    }
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
