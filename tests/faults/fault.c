/* Loaded before libc into a process that a test damages: operations that change files
 * below a folder are logged, and from the nth of those selected on, they fail.
 *
 * A failing operation sets `error`, as on a full disk (ENOSPC), over a quota (EDQUOT)
 * or on a read-only disk (EROFS); with an `error` of 0 it kills the process. A write
 * that is killed is torn: its first half reaches the file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
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

static char folder[PATH_MAX], selected[PATH_MAX];
static atomic_long seen;
static long nth;
static int error, log_fd = -1;

/* Selects operations by the shell pattern of "NAME PATH"; nth = 0: none fails. */
void fault_arm(const char *below, const char *pattern, long at, int errno_or_0,
               const char *log) {
  strncpy(selected, pattern, sizeof selected - 1);
  seen = 0;
  nth = at;
  error = errno_or_0;
  log_fd = open(log, O_WRONLY | O_APPEND);
  strncpy(folder, below, sizeof folder - 1);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

enum { PASS, FAIL, TEAR };

/* Returns what the operation is to do; `path` may be relative to an open folder, or
 * NULL for the open file itself. */
static int hit(const char *name, int fd, const char *path, int can_tear) {
  char link[64], operation[2 * PATH_MAX];
  if (!folder[0]) return PASS;
  int length = snprintf(operation, sizeof operation, "%s ", name);
  char *full = operation + length;
  if (path && (path[0] == '/' || fd == AT_FDCWD)) {
    strcpy(full, path);
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t end = readlink(link, full, PATH_MAX - 1);
    if (end < 0) return PASS;
    sprintf(full + end, path ? "/%s" : "", path);
  }
  if (strncmp(full, folder, strlen(folder))) return PASS;
  dprintf(log_fd, "%s\n", operation);
  if (fnmatch(selected, operation, 0)) return PASS;
  long now = ++seen;
  if (!nth || now < nth) return PASS;
  if (error) {
    errno = error;
    return FAIL;
  }
  if (can_tear) return TEAR;
  die();
  return FAIL;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name, parameters, dir, ...)                         \
  int name parameters {                                          \
    mode_t mode = 0;                                             \
    if (flags & (O_CREAT | O_TMPFILE)) {                         \
      va_list rest;                                              \
      va_start(rest, flags);                                     \
      mode = va_arg(rest, mode_t);                               \
      va_end(rest);                                              \
    }                                                            \
    int changes = flags & (O_CREAT | O_TRUNC);                   \
    if (changes && hit("open", dir, path, 0)) return -1;         \
    return REAL(name)(__VA_ARGS__, mode);                        \
  }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, flags)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, flags)
OPEN(openat, (int dir, const char *path, int flags, ...), dir, dir, path, flags)
OPEN(openat64, (int dir, const char *path, int flags, ...), dir, dir, path, flags)

#define CHANGE(name, label, parameters, fd, path, ...)           \
  int name parameters {                                          \
    if (hit(label, fd, path, 0)) return -1;                      \
    return REAL(name)(__VA_ARGS__);                              \
  }
#define ON_PATH(name, label) \
  CHANGE(name, label, (const char *path), AT_FDCWD, path, path)
#define TO_PATH(name, label) \
  CHANGE(name, label, (const char *from, const char *to), AT_FDCWD, to, from, to)
ON_PATH(unlink, "unlink")
ON_PATH(rmdir, "unlink")
TO_PATH(rename, "rename")
TO_PATH(link, "link")
TO_PATH(symlink, "link")
CHANGE(mkdir, "mkdir", (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
CHANGE(mkdirat, "mkdir", (int dir, const char *path, mode_t mode), dir, path, dir, path,
       mode)
CHANGE(unlinkat, "unlink", (int dir, const char *path, int flags), dir, path, dir, path,
       flags)
CHANGE(renameat, "rename", (int from_dir, const char *from, int dir, const char *to), dir,
       to, from_dir, from, dir, to)
CHANGE(ftruncate, "truncate", (int fd, off_t length), fd, NULL, fd, length)
CHANGE(ftruncate64, "truncate", (int fd, off64_t length), fd, NULL, fd, length)

/* `half` writes the first half of the data. */
#define WRITE(name, parameters, half, ...)                       \
  ssize_t name parameters {                                      \
    int what = hit("write", fd, NULL, 1);                        \
    if (what == FAIL) return -1;                                 \
    if (what == TEAR) {                                          \
      half;                                                      \
      die();                                                     \
    }                                                            \
    return REAL(name)(__VA_ARGS__);                              \
  }
#define HALF parts[0].iov_base, count ? parts[0].iov_len / 2 : 0
WRITE(write, (int fd, const void *data, size_t size), REAL(write)(fd, data, size / 2),
      fd, data, size)
WRITE(pwrite, (int fd, const void *data, size_t size, off_t at),
      REAL(pwrite)(fd, data, size / 2, at), fd, data, size, at)
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t at),
      REAL(pwrite64)(fd, data, size / 2, at), fd, data, size, at)
WRITE(writev, (int fd, const struct iovec *parts, int count), REAL(write)(fd, HALF), fd,
      parts, count)
WRITE(pwritev, (int fd, const struct iovec *parts, int count, off_t at),
      REAL(pwrite)(fd, HALF, at), fd, parts, count, at)
