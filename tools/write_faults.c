/* Preloaded into a process: counts its writes below one folder, and breaks one of them.

   A write is any call that changes what is below the folder: data, names, sizes, and fsync. Symbols are bound when they
   are called, so that this is compiled against any libc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, FAIL, SHORT };
enum { DATA, GROW, NAME, SYNC, REMOVE };

static char folder[PATH_MAX];
static long at, count;
static int mode;

/* From now on: the n-th write below `path` is broken as `how` says. */
void faults_arm(const char *path, long n, int how) {
    strncpy(folder, path, sizeof folder - 1);
    at = n, mode = how, count = 0;
}

long faults_count(void) { return count; }

static int below(const char *path) {
    size_t n = strlen(folder);
    return n && !strncmp(path, folder, n) && (path[n] == '/' || !path[n]);
}

static int named(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n > 0) path[n] = 0;
    return n > 0;
}

static int counts_fd(int fd) {
    char path[PATH_MAX];
    return *folder && named(fd, path) && below(path);
}

static int counts_path(int dir, const char *path) {
    char whole[2 * PATH_MAX], start[PATH_MAX];
    if (!*folder) return 0;
    if (path[0] == '/') return below(path);
    if (dir == AT_FDCWD ? !getcwd(start, sizeof start) : !named(dir, start)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", start, path);
    return below(whole);
}

/* 0: go on; else errno of the failure. Killed where the turn has come; `part` does a half of the write before. */
static int turn(int kind, void (*part)(void *), void *arguments) {
    long n = __sync_add_and_fetch(&count, 1);
    if (mode == KILL && n == at) {
        if (part) part(arguments);
        kill(getpid(), SIGKILL);
        pause();
    }
    if (mode == FULL && n >= at && (kind == DATA || kind == GROW)) return ENOSPC;
    if (mode == FAIL && n == at && kind != REMOVE) return EIO;
    return 0;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define GUARD(counts, kind) \
    if (counts) { \
        int error = turn(kind, NULL, NULL); \
        if (error) { errno = error; return -1; } \
    }

struct half { int fd; const void *data; size_t size; off_t offset; };

static ssize_t (*plain_write)(int, const void *, size_t);
static ssize_t (*plain_pwrite)(int, const void *, size_t, off_t);

static void write_half(void *arguments) {
    struct half *h = arguments;
    if (h->offset < 0) plain_write(h->fd, h->data, h->size / 2);
    else plain_pwrite(h->fd, h->data, h->size / 2, h->offset);
}

ssize_t write(int fd, const void *data, size_t size) {
    if (!plain_write) plain_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (counts_fd(fd)) {
        struct half h = {fd, data, size, -1};
        int error = turn(DATA, write_half, &h);
        if (error) { errno = error; return -1; }
        if (mode == SHORT && size > 1) size = (size + 1) / 2;
    }
    return plain_write(fd, data, size);
}

static ssize_t pwrite_any(int fd, const void *data, size_t size, off_t offset) {
    if (!plain_pwrite) plain_pwrite = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    if (counts_fd(fd)) {
        struct half h = {fd, data, size, offset};
        int error = turn(DATA, write_half, &h);
        if (error) { errno = error; return -1; }
        if (mode == SHORT && size > 1) size = (size + 1) / 2;
    }
    return plain_pwrite(fd, data, size, offset);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite_any(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite_any(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    GUARD(counts_fd(fd), DATA)
    return real(fd, parts, n);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    GUARD(counts_fd(fd), SYNC)
    return real(fd);
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    GUARD(counts_fd(fd), SYNC)
    return real(fd);
}

int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    GUARD(counts_fd(fd), GROW)
    return real(fd, size);
}
int ftruncate64(int fd, off_t size) {
    REAL(int, "ftruncate64", int, off_t);
    GUARD(counts_fd(fd), GROW)
    return real(fd, size);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    GUARD(counts_path(AT_FDCWD, to), NAME)
    return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    GUARD(counts_path(b, to), NAME)
    return real(a, from, b, to);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    GUARD(counts_path(AT_FDCWD, path), REMOVE)
    return real(path);
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    GUARD(counts_path(dir, path), REMOVE)
    return real(dir, path, flags);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    GUARD(counts_path(AT_FDCWD, path), REMOVE)
    return real(path);
}

int mkdir(const char *path, mode_t rights) {
    REAL(int, "mkdir", const char *, mode_t);
    GUARD(counts_path(AT_FDCWD, path), GROW)
    return real(path, rights);
}
int mkdirat(int dir, const char *path, mode_t rights) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    GUARD(counts_path(dir, path), GROW)
    return real(dir, path, rights);
}

static mode_t rights_of(int flags, va_list list) { return flags & O_CREAT ? va_arg(list, mode_t) : 0; }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list list; \
        va_start(list, flags); \
        mode_t rights = rights_of(flags, list); \
        va_end(list); \
        GUARD((flags & (O_CREAT | O_TRUNC)) && counts_path(AT_FDCWD, path), GROW) \
        return real(path, flags, rights); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list list; \
        va_start(list, flags); \
        mode_t rights = rights_of(flags, list); \
        va_end(list); \
        GUARD((flags & (O_CREAT | O_TRUNC)) && counts_path(dir, path), GROW) \
        return real(dir, path, flags, rights); \
    }
OPENAT(openat)
OPENAT(openat64)
