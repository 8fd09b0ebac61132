/* Loaded before libc into a process that is to be hurt: at the nth operation that
 * changes a file below a folder, the process is killed, or all from there on fail.
 *
 * A write that is killed is torn: its first half reaches the file. Failing operations
 * set `error`, as a full disk (ENOSPC), a quota (EDQUOT) or a read-only one (EROFS).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long seen, nth;
static int error; /* 0: kill */

void fault_arm(const char *below, long at, int errno_or_0) {
  strncpy(folder, below, sizeof folder - 1);
  seen = 0;
  nth = at;
  error = errno_or_0;
}

long fault_count(void) { return seen; }

static int is_below(const char *path) {
  return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int fd_is_below(int fd) {
  char link[64], path[PATH_MAX];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return is_below(path);
}

/* Of a path relative to a folder that is open. */
static int at_is_below(int dir, const char *path) {
  return path && path[0] != '/' && dir != AT_FDCWD ? fd_is_below(dir) : is_below(path);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* Returns whether the operation must fail; 2: the caller is to tear it and die. */
static int hit(int can_tear) {
  long now = ++seen, at = nth;
  if (!at || now < at) return 0;
  if (error) {
    errno = error;
    return 1;
  }
  if (can_tear) return 2;
  die();
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE(flags)                       \
  mode_t mode = 0;                        \
  if ((flags) & (O_CREAT | O_TMPFILE)) {  \
    va_list rest;                         \
    va_start(rest, flags);                \
    mode = va_arg(rest, mode_t);          \
    va_end(rest);                         \
  }

#define OPEN(name)                                                       \
  int name(const char *path, int flags, ...) {                           \
    MODE(flags)                                                          \
    if (CHANGES(flags) && is_below(path) && hit(0)) return -1;           \
    return REAL(name)(path, flags, mode);                                \
  }
#define OPENAT(name)                                                     \
  int name(int dir, const char *path, int flags, ...) {                  \
    MODE(flags)                                                          \
    if (CHANGES(flags) && at_is_below(dir, path) && hit(0)) return -1;   \
    return REAL(name)(dir, path, flags, mode);                           \
  }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define ON_PATH(name, parameters, path, ...)                             \
  int name parameters {                                                  \
    if (is_below(path) && hit(0)) return -1;                             \
    return REAL(name)(__VA_ARGS__);                                      \
  }
ON_PATH(mkdir, (const char *path, mode_t mode), path, path, mode)
ON_PATH(unlink, (const char *path), path, path)
ON_PATH(rmdir, (const char *path), path, path)
ON_PATH(rename, (const char *from, const char *to), to, from, to)
ON_PATH(link, (const char *from, const char *to), to, from, to)
ON_PATH(symlink, (const char *from, const char *to), to, from, to)

int unlinkat(int dir, const char *path, int flags) {
  if (at_is_below(dir, path) && hit(0)) return -1;
  return REAL(unlinkat)(dir, path, flags);
}
int mkdirat(int dir, const char *path, mode_t mode) {
  if (at_is_below(dir, path) && hit(0)) return -1;
  return REAL(mkdirat)(dir, path, mode);
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
  if (at_is_below(to_dir, to) && hit(0)) return -1;
  return REAL(renameat)(from_dir, from, to_dir, to);
}
int ftruncate(int fd, off_t length) {
  if (fd_is_below(fd) && hit(0)) return -1;
  return REAL(ftruncate)(fd, length);
}
int ftruncate64(int fd, off64_t length) {
  if (fd_is_below(fd) && hit(0)) return -1;
  return REAL(ftruncate64)(fd, length);
}

ssize_t write(int fd, const void *data, size_t size) {
  int what = fd_is_below(fd) ? hit(1) : 0;
  if (what == 1) return -1;
  if (what == 2) {
    REAL(write)(fd, data, size / 2);
    die();
  }
  return REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  int what = fd_is_below(fd) ? hit(1) : 0;
  if (what == 1) return -1;
  if (what == 2) {
    REAL(pwrite)(fd, data, size / 2, at);
    die();
  }
  return REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  int what = fd_is_below(fd) ? hit(1) : 0;
  if (what == 1) return -1;
  if (what == 2) {
    REAL(pwrite64)(fd, data, size / 2, at);
    die();
  }
  return REAL(pwrite64)(fd, data, size, at);
}
static void tear(int fd, const struct iovec *parts, int count, off64_t at) {
  if (count) pwrite64(fd, parts[0].iov_base, parts[0].iov_len / 2, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  int what = fd_is_below(fd) ? hit(1) : 0;
  if (what == 1) return -1;
  if (what == 2) {
    nth = 0;
    tear(fd, parts, count, lseek(fd, 0, SEEK_CUR));
    die();
  }
  return REAL(writev)(fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
  int what = fd_is_below(fd) ? hit(1) : 0;
  if (what == 1) return -1;
  if (what == 2) {
    nth = 0;
    tear(fd, parts, count, at);
    die();
  }
  return REAL(pwritev)(fd, parts, count, at);
}
