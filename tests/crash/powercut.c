/* A disk that forgets, as a library to preload (LD_PRELOAD): what a process writes below one
 * directory is noted together with what was there before, until it is synced. When the process has
 * been killed, what a power cut at that moment could have left behind is made from the notes
 * (tests/crash/powercut.rs). It can also fail and slow down writes and syncs while the process runs.
 *
 *   POWERCUT_DIR      the directory watched; must exist
 *   POWERCUT_NOTES    where the notes are kept: another directory of the same file system, not below
 *                     the first. Without it nothing is noted, syncs are real, and only faults work.
 *   POWERCUT_CONTROL  a file of 64 bytes, see struct control; may be missing
 *
 * What counts as durable:
 *   fsync, fdatasync  the contents and length of that file; of a directory: its entries
 *   syncfs, sync      everything
 *   sync_file_range   nothing, close nothing, rename nothing
 * Real syncs are left out while notes are kept: the notes say what the disk has, and it is faster.
 *
 * The notes:
 *   u-INODE    what to undo in a file: {offset, length, before the write} records, and {-1, length of
 *              the file}. Emptied by a sync. The last record for a sector counts. A sector is noted
 *              when it first becomes dirty, and again one time in eight later on, as if the kernel
 *              had written it back in between.
 *   p-INODE    the same for what a failed sync has left undecided for ever.
 *   ops        changes of directories, and syncs of directories, one text line each.
 *   g-INODE    a link to a file that was unlinked or replaced; a directory that was removed. Keeps
 *              the inode from being used again as long as the notes speak of it.
 *
 * Not seen: mmap, system calls made without libc, io_uring. sled 0.34 and the store use none of these
 * to change a file (fallocate with KEEP_SIZE goes past us and changes neither contents nor length).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SECTOR 512
#define FDS 65536
#define LENGTH UINT64_MAX

struct control {
    uint64_t fail_syncs;    /* so many syncs fail with EIO */
    uint64_t sync_delay_us; /* each sync takes this much longer */
    uint64_t full;          /* not 0: writes that need room fail with ENOSPC */
    uint64_t fail_writes;   /* so many writes fail with EIO */
    uint64_t read_only;     /* not 0: changes fail with EROFS */
    uint64_t syncs;         /* counted: syncs that went well */
    uint64_t written;       /* counted: bytes */
    uint64_t faults;        /* counted: calls that were failed on purpose */
};

/* A file with changes that are not synced. */
struct file {
    ino_t inode;
    int undo;           /* descriptor of u-INODE, -1 when closed */
    uint8_t *dirty;     /* a bit for each sector */
    size_t sectors;     /* bits there are */
    int length_noted;
    struct file *next;
};

struct record {
    uint64_t offset, length;
};

static char root[PATH_MAX], notes[PATH_MAX];
static size_t root_len;
static int noting, ops = -1;
static struct control none, *control = &none;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct file *files[1024];
/* What is known of a descriptor: 0 nothing, 1 not ours, 2 ours. */
static uint8_t known[FDS];
static uint32_t dice = 2463534242u;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_truncate)(const char *, off_t);
static int (*real_fallocate)(int, int, off_t, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_syncfs)(int);
static void (*real_sync)(void);
static int (*real_sync_file_range)(int, off_t, off_t, unsigned);
static int (*real_renameat2)(int, const char *, int, const char *, unsigned);
static int (*real_linkat)(int, const char *, int, const char *, int);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_mkdirat)(int, const char *, mode_t);
static int (*real_dup2)(int, int);
static int (*real_dup3)(int, int, int);

static void die(const char *what) {
    dprintf(2, "powercut: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static void *find(const char *name) {
    void *f = dlsym(RTLD_NEXT, name);
    if (!f) die(name);
    return f;
}

__attribute__((constructor)) static void begin(void) {
    real_open = find("open64");
    real_openat = find("openat64");
    real_close = find("close");
    real_write = find("write");
    real_writev = find("writev");
    real_pwrite = find("pwrite64");
    real_pwritev = find("pwritev64");
    real_ftruncate = find("ftruncate64");
    real_truncate = find("truncate64");
    real_fallocate = find("fallocate64");
    real_fsync = find("fsync");
    real_fdatasync = find("fdatasync");
    real_syncfs = find("syncfs");
    real_sync = find("sync");
    real_sync_file_range = find("sync_file_range");
    real_renameat2 = find("renameat2");
    real_linkat = find("linkat");
    real_unlinkat = find("unlinkat");
    real_mkdirat = find("mkdirat");
    real_dup2 = find("dup2");
    real_dup3 = find("dup3");
    const char *dir = getenv("POWERCUT_DIR"), *to = getenv("POWERCUT_NOTES"), *by = getenv("POWERCUT_CONTROL");
    if (!dir) return;
    if (!realpath(dir, root)) die(dir);
    root_len = strlen(root);
    if (by) {
        int fd = real_open(by, O_RDWR | O_CLOEXEC);
        if (fd < 0) die(by);
        void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) die(by);
        control = at;
        real_close(fd);
    }
    if (to) {
        if (!realpath(to, notes)) die(to);
        char path[PATH_MAX + 8];
        snprintf(path, sizeof path, "%s/ops", notes);
        ops = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (ops < 0) die(path);
        noting = 1;
    }
    dice ^= (uint32_t)getpid() * 2654435761u;
}

/* xorshift; only decides which sectors the kernel is taken to have written back. */
static uint32_t roll(void) {
    dice ^= dice << 13, dice ^= dice >> 17, dice ^= dice << 5;
    return dice;
}

static int below(const char *path) {
    return root_len && !strncmp(path, root, root_len) && (path[root_len] == '/' || !path[root_len]);
}

/* Whether a descriptor is a file or directory below the root. */
static int ours(int fd) {
    if (!root_len || fd < 0 || fd >= FDS) return 0;
    if (!known[fd]) {
        char link[64], path[PATH_MAX];
        int saved = errno;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path - 1);
        path[n > 0 ? n : 0] = 0;
        known[fd] = n > 0 && below(path) ? 2 : 1;
        errno = saved;
    }
    return known[fd] == 2;
}

static void forget(int fd) {
    if (fd >= 0 && fd < FDS) known[fd] = 0;
}

/* Absolute path of what a call names, its last part not followed; 0 when it is not below the root. */
static int resolve(int at, const char *path, char *out) {
    char whole[PATH_MAX * 2], *slash;
    if (!root_len) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char base[PATH_MAX], link[64];
        if (at == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n <= 0) return 0;
            base[n] = 0;
        }
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    size_t n = strlen(whole);
    while (n > 1 && whole[n - 1] == '/') whole[--n] = 0;
    slash = strrchr(whole, '/');
    if (!slash) return 0;
    char parent[PATH_MAX];
    *slash = 0;
    if (!realpath(slash == whole ? "/" : whole, parent)) return 0;
    snprintf(out, PATH_MAX, "%.2000s/%.1000s", parent, slash + 1);
    return below(out);
}

static void all(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        ssize_t w = real_write(fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) die("notes");
        p += w, n -= (size_t)w;
    }
}

static ino_t inode_of(const char *path) {
    struct stat st;
    return lstat(path, &st) ? 0 : st.st_ino;
}

static ino_t parent_of(const char *path) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    *strrchr(parent, '/') = 0;
    return inode_of(parent);
}

static const char *last(const char *path) {
    return strrchr(path, '/') + 1;
}

/* kind, directory, name, inode; second directory, second name, inode replaced. Before it is done. */
static void note_op(char kind, ino_t dir, const char *name, ino_t inode, ino_t to, const char *as, ino_t gone) {
    char line[3 * PATH_MAX];
    int n = snprintf(line, sizeof line, "%c\t%lu\t%s\t%lu\t%lu\t%s\t%lu\n", kind, (unsigned long)dir, name,
                     (unsigned long)inode, (unsigned long)to, as, (unsigned long)gone);
    all(ops, line, (size_t)n);
}

static void keep_link(const char *path, ino_t inode) {
    char to[PATH_MAX + 32];
    snprintf(to, sizeof to, "%s/g-%lu", notes, (unsigned long)inode);
    if (real_linkat(AT_FDCWD, path, AT_FDCWD, to, 0) && errno != EEXIST) die(to);
}

static void mark(struct file *f, uint64_t from, uint64_t to) {
    if (to > f->sectors) {
        size_t more = (to + 8191) / 4096 * 4096;
        f->dirty = realloc(f->dirty, more / 8);
        if (!f->dirty) die("memory");
        memset(f->dirty + f->sectors / 8, 0, (more - f->sectors) / 8);
        f->sectors = more;
    }
    for (uint64_t s = from; s < to; s++) f->dirty[s / 8] |= (uint8_t)(1 << s % 8);
}

static int is_dirty(struct file *f, uint64_t s) {
    return s < f->sectors && f->dirty[s / 8] >> s % 8 & 1;
}

/* Goes on with the notes an earlier process left; a torn last record was never acted upon. */
static void load(struct file *f, const char *path) {
    int fd = real_open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    struct record r;
    struct stat st;
    off_t at = 0;
    if (fstat(fd, &st)) die(path);
    while (pread(fd, &r, sizeof r, at) == sizeof r) {
        off_t end = at + (off_t)sizeof r + (off_t)(r.offset == LENGTH ? 0 : r.length);
        if (end > st.st_size) break;
        if (r.offset == LENGTH) f->length_noted = 1;
        else mark(f, r.offset / SECTOR, (r.offset + r.length + SECTOR - 1) / SECTOR);
        at = end;
    }
    real_close(fd);
    if (at < st.st_size && real_truncate(path, at)) die(path);
}

static struct file *file_of(ino_t inode) {
    struct file **slot = &files[inode % 1024], *f;
    for (f = *slot; f; f = f->next)
        if (f->inode == inode) break;
    if (!f) {
        f = calloc(1, sizeof *f);
        if (!f) die("memory");
        *f = (struct file){.inode = inode, .undo = -1, .next = *slot};
        *slot = f;
    }
    if (f->undo < 0) {
        char path[PATH_MAX + 32];
        snprintf(path, sizeof path, "%s/u-%lu", notes, (unsigned long)inode);
        load(f, path);
        f->undo = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (f->undo < 0) die(path);
    }
    return f;
}

static void note_length(struct file *f, uint64_t length) {
    if (f->length_noted) return;
    struct record r = {LENGTH, length};
    all(f->undo, &r, sizeof r);
    f->length_noted = 1;
}

/* Notes what is in a range before it changes. */
static void note_range(struct file *f, int reader, uint64_t length, uint64_t from, uint64_t to) {
    uint64_t first = from / SECTOR, end = (to + SECTOR - 1) / SECTOR, filled = (length + SECTOR - 1) / SECTOR;
    note_length(f, length);
    for (uint64_t s = first; s < end && s < filled;) {
        if (is_dirty(f, s) && roll() % 8) {
            s++;
            continue;
        }
        uint64_t run = s + 1;
        while (run < end && run < filled && run - s < 2048 && !is_dirty(f, run)) run++;
        struct record r = {s * SECTOR, 0};
        uint64_t stop = run * SECTOR < length ? run * SECTOR : length;
        r.length = stop - r.offset;
        char *buffer = malloc(sizeof r + r.length);
        if (!buffer) die("memory");
        memcpy(buffer, &r, sizeof r);
        if (pread(reader, buffer + sizeof r, r.length, (off_t)r.offset) != (ssize_t)r.length) die("reading back");
        all(f->undo, buffer, sizeof r + r.length);
        free(buffer);
        s = run;
    }
    /* Beyond the old end nothing was there; the length says so. */
    mark(f, first, end);
}

/* Notes a change of a file; a descriptor opened for writing only cannot be read from. */
static void note_change(int fd, uint64_t from, uint64_t to, int resize) {
    struct stat st;
    if (fstat(fd, &st)) die("fstat");
    if (!S_ISREG(st.st_mode)) return;
    struct file *f = file_of(st.st_ino);
    uint64_t length = (uint64_t)st.st_size;
    if (resize) {
        note_length(f, length);
        from = to < length ? to : length;
        to = length;
    }
    if (from >= to) return;
    int reader = -1;
    if (from / SECTOR * SECTOR < length) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        reader = real_open(link, O_RDONLY | O_CLOEXEC);
        if (reader < 0) die("opening again");
    }
    note_range(f, reader, length, from, to);
    if (reader >= 0) real_close(reader);
}

static int fault(int error) {
    __atomic_add_fetch(&control->faults, 1, __ATOMIC_RELAXED);
    errno = error;
    return -1;
}

static int take_one(uint64_t *counter) {
    uint64_t n = __atomic_load_n(counter, __ATOMIC_RELAXED);
    while (n && !__atomic_compare_exchange_n(counter, &n, n - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return n > 0;
}

/* A change that may be refused; `room`: whether it takes more of the disk. */
static int refused(int room) {
    if (__atomic_load_n(&control->read_only, __ATOMIC_RELAXED)) return fault(EROFS);
    if (room && __atomic_load_n(&control->full, __ATOMIC_RELAXED)) return fault(ENOSPC);
    if (room && take_one(&control->fail_writes)) return fault(EIO);
    return 0;
}

/* --- files --- */

static int opening(int at, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    int fd, writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!writes || (flags & O_TMPFILE) == O_TMPFILE || !resolve(at, path, whole)) {
        fd = real_openat(at, path, flags, mode);
        forget(fd);
        return fd;
    }
    if (__atomic_load_n(&control->read_only, __ATOMIC_RELAXED)) return fault(EROFS);
    pthread_mutex_lock(&mutex);
    int is_new = inode_of(whole) == 0;
    if (is_new && flags & O_CREAT && refused(1)) {
        pthread_mutex_unlock(&mutex);
        return -1;
    }
    if (noting && is_new && flags & O_CREAT) note_op('c', parent_of(whole), last(whole), 0, 0, "-", 0);
    fd = real_openat(at, path, flags & ~O_TRUNC, mode);
    int saved = errno;
    forget(fd);
    if (fd >= 0 && flags & O_TRUNC) {
        if (noting && !is_new) note_change(fd, 0, 0, 1);
        if (real_ftruncate(fd, 0)) die("truncating");
    }
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return fd;
}

#define MODE(last_arg)                                        \
    mode_t mode = 0;                                          \
    if (flags & (O_CREAT | O_TMPFILE)) {                      \
        va_list args;                                         \
        va_start(args, last_arg);                             \
        mode = va_arg(args, mode_t);                          \
        va_end(args);                                         \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opening(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opening(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return opening(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return opening(at, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opening(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opening(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
    forget(fd);
    return real_close(fd);
}

int dup2(int from, int to) {
    forget(to);
    return real_dup2(from, to);
}

int dup3(int from, int to, int flags) {
    forget(to);
    return real_dup3(from, to, flags);
}

/* Notes and counts a write of n bytes at `at`, or at the file's own place; refused: -1. Leaves the
 * mutex locked otherwise. */
static int before_write(int fd, off_t at, size_t n) {
    if (refused(1)) return -1;
    pthread_mutex_lock(&mutex);
    __atomic_add_fetch(&control->written, n, __ATOMIC_RELAXED);
    if (!noting) return 0;
    if (at < 0) {
        struct stat st;
        at = fcntl(fd, F_GETFL) & O_APPEND && !fstat(fd, &st) ? st.st_size : lseek(fd, 0, SEEK_CUR);
    }
    if (at >= 0) note_change(fd, (uint64_t)at, (uint64_t)at + n, 0);
    return 0;
}

static size_t total(const struct iovec *v, int n) {
    size_t sum = 0;
    for (int i = 0; i < n; i++) sum += v[i].iov_len;
    return sum;
}

#define WRITING(fd, at, n, call)           \
    if (!ours(fd)) return call;            \
    if (before_write(fd, at, n)) return -1; \
    ssize_t done = call;                   \
    int saved = errno;                     \
    pthread_mutex_unlock(&mutex);          \
    errno = saved;                         \
    return done;

ssize_t write(int fd, const void *p, size_t n) { WRITING(fd, -1, n, real_write(fd, p, n)) }
ssize_t writev(int fd, const struct iovec *v, int n) { WRITING(fd, -1, total(v, n), real_writev(fd, v, n)) }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { WRITING(fd, at, n, real_pwrite(fd, p, n, at)) }
ssize_t pwrite64(int fd, const void *p, size_t n, off_t at) { WRITING(fd, at, n, real_pwrite(fd, p, n, at)) }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) {
    WRITING(fd, at, total(v, n), real_pwritev(fd, v, n, at))
}
ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at) {
    WRITING(fd, at, total(v, n), real_pwritev(fd, v, n, at))
}

/* These would go past the notes; callers fall back to read and write. */
ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t n, unsigned flags) {
    (void)in, (void)from, (void)out, (void)to, (void)n, (void)flags;
    errno = ENOSYS;
    return -1;
}

static int resizing(int fd, off_t length) {
    struct stat st;
    if (!ours(fd)) return real_ftruncate(fd, length);
    if (refused(!fstat(fd, &st) && st.st_size < length)) return -1;
    pthread_mutex_lock(&mutex);
    if (noting) note_change(fd, 0, (uint64_t)length, 1);
    int done = real_ftruncate(fd, length), saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return done;
}

int ftruncate(int fd, off_t length) { return resizing(fd, length); }
int ftruncate64(int fd, off_t length) { return resizing(fd, length); }

int truncate(const char *path, off_t length) {
    int fd = opening(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int done = resizing(fd, length), saved = errno;
    close(fd);
    errno = saved;
    return done;
}
int truncate64(const char *path, off_t length) { return truncate(path, length); }

static int allocating(int fd, int mode, off_t from, off_t n) {
    if (!ours(fd)) return real_fallocate(fd, mode, from, n);
    if (refused(1)) return -1;
    pthread_mutex_lock(&mutex);
    struct stat st;
    if (noting && !fstat(fd, &st)) {
        if (mode & ~FALLOC_FL_KEEP_SIZE) note_change(fd, (uint64_t)from, (uint64_t)(from + n), 0);
        else if (!mode && from + n > st.st_size) note_change(fd, 0, (uint64_t)(from + n), 1);
    }
    int done = real_fallocate(fd, mode, from, n), saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return done;
}

int fallocate(int fd, int mode, off_t from, off_t n) { return allocating(fd, mode, from, n); }
int fallocate64(int fd, int mode, off_t from, off_t n) { return allocating(fd, mode, from, n); }
int posix_fallocate(int fd, off_t from, off_t n) { return allocating(fd, 0, from, n) ? errno : 0; }
int posix_fallocate64(int fd, off_t from, off_t n) { return allocating(fd, 0, from, n) ? errno : 0; }

/* --- syncs --- */

static void file_synced(struct file *f) {
    if (f->undo >= 0 && real_ftruncate(f->undo, 0)) die("notes");
    if (f->undo >= 0) real_close(f->undo);
    f->undo = -1;
    f->length_noted = 0;
    if (f->dirty) memset(f->dirty, 0, f->sectors / 8);
}

/* Moves the notes of a file to where no later sync empties them: the kernel calls the pages clean. */
static void sync_failed(struct file *f) {
    char from[PATH_MAX + 32], to[PATH_MAX + 32], buffer[1 << 16];
    snprintf(from, sizeof from, "%s/u-%lu", notes, (unsigned long)f->inode);
    snprintf(to, sizeof to, "%s/p-%lu", notes, (unsigned long)f->inode);
    int in = real_open(from, O_RDONLY | O_CLOEXEC);
    int out = real_open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) die(to);
    ssize_t n;
    while ((n = read(in, buffer, sizeof buffer)) > 0) all(out, buffer, (size_t)n);
    real_close(in), real_close(out);
    file_synced(f);
}

static int syncing(int fd, int (*real)(int)) {
    struct stat st;
    if (!ours(fd)) return real(fd);
    uint64_t delay = __atomic_load_n(&control->sync_delay_us, __ATOMIC_RELAXED);
    if (delay) nanosleep(&(struct timespec){(time_t)(delay / 1000000), (long)(delay % 1000000) * 1000}, NULL);
    int fails = take_one(&control->fail_syncs);
    if (noting && !fstat(fd, &st)) {
        pthread_mutex_lock(&mutex);
        if (S_ISDIR(st.st_mode) && !fails) {
            note_op('s', st.st_ino, "-", 0, 0, "-", 0);
        } else if (S_ISREG(st.st_mode)) {
            struct file *f = file_of(st.st_ino);
            if (fails) sync_failed(f);
            else file_synced(f);
        }
        pthread_mutex_unlock(&mutex);
    }
    if (fails) return fault(EIO);
    __atomic_add_fetch(&control->syncs, 1, __ATOMIC_RELAXED);
    return noting ? 0 : real(fd);
}

int fsync(int fd) { return syncing(fd, real_fsync); }
int fdatasync(int fd) { return syncing(fd, real_fdatasync); }

int sync_file_range(int fd, off_t from, off_t n, unsigned flags) {
    return ours(fd) && noting ? 0 : real_sync_file_range(fd, from, n, flags);
}

static void all_synced(void) {
    DIR *dir = opendir(notes);
    if (!dir) die(notes);
    pthread_mutex_lock(&mutex);
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strncmp(e->d_name, "u-", 2)) file_synced(file_of(strtoul(e->d_name + 2, NULL, 10)));
    }
    note_op('S', 0, "-", 0, 0, "-", 0);
    pthread_mutex_unlock(&mutex);
    closedir(dir);
}

int syncfs(int fd) {
    if (!noting) return real_syncfs(fd);
    if (ours(fd)) all_synced();
    return 0;
}

void sync(void) {
    if (noting) all_synced();
    else real_sync();
}

/* --- directories --- */

static int renaming(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char old[PATH_MAX], new[PATH_MAX];
    int is_old = resolve(from_at, from, old), is_new = resolve(to_at, to, new);
    if (!is_old && !is_new) return real_renameat2(from_at, from, to_at, to, flags);
    if (refused(1)) return -1;
    if (noting && (!is_old || !is_new || flags & ~RENAME_NOREPLACE)) {
        errno = EXDEV; /* across the border of what is watched: not wanted here */
        return -1;
    }
    pthread_mutex_lock(&mutex);
    if (noting) {
        ino_t inode = inode_of(old), replaced = inode_of(new);
        struct stat st;
        int is_dir = !lstat(new, &st) && S_ISDIR(st.st_mode);
        if (replaced && replaced != inode && !is_dir) keep_link(new, replaced);
        if (replaced && is_dir) errno = ENOTEMPTY;
        if (replaced && is_dir) {
            pthread_mutex_unlock(&mutex);
            return -1;
        }
        if (inode) note_op('r', parent_of(old), last(old), inode, parent_of(new), last(new), replaced);
    }
    int done = real_renameat2(from_at, from, to_at, to, flags), saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return done;
}

int rename(const char *from, const char *to) { return renaming(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return renaming(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return renaming(a, from, b, to, flags);
}

static int is_empty(const char *path) {
    DIR *dir = opendir(path);
    int n = 0;
    if (!dir) return 0;
    while (n < 3 && readdir(dir)) n++;
    closedir(dir);
    return n < 3;
}

static int unlinking(int at, const char *path, int flags) {
    char whole[PATH_MAX], to[PATH_MAX + 32];
    if (!resolve(at, path, whole)) return real_unlinkat(at, path, flags);
    if (refused(0)) return -1;
    if (!noting) return real_unlinkat(at, path, flags);
    pthread_mutex_lock(&mutex);
    struct stat st;
    int done = -1, saved;
    if (lstat(whole, &st)) {
        done = real_unlinkat(at, path, flags);
    } else if (flags & AT_REMOVEDIR) {
        if (!S_ISDIR(st.st_mode)) {
            errno = ENOTDIR;
        } else if (!is_empty(whole)) {
            errno = ENOTEMPTY;
        } else {
            snprintf(to, sizeof to, "%s/g-%lu", notes, (unsigned long)st.st_ino);
            note_op('d', parent_of(whole), last(whole), st.st_ino, 0, "-", 0);
            done = real_renameat2(AT_FDCWD, whole, AT_FDCWD, to, 0);
        }
    } else if (S_ISDIR(st.st_mode)) {
        errno = EISDIR;
    } else {
        keep_link(whole, st.st_ino);
        note_op('u', parent_of(whole), last(whole), st.st_ino, 0, "-", 0);
        done = real_unlinkat(at, path, flags);
    }
    saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return done;
}

int unlink(const char *path) { return unlinking(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlinking(at, path, flags); }
int rmdir(const char *path) { return unlinking(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    struct stat st;
    return unlinking(AT_FDCWD, path, !lstat(path, &st) && S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
}

static int making(int at, const char *path, mode_t mode) {
    char whole[PATH_MAX];
    if (!resolve(at, path, whole)) return real_mkdirat(at, path, mode);
    if (refused(1)) return -1;
    pthread_mutex_lock(&mutex);
    if (noting && !inode_of(whole)) note_op('m', parent_of(whole), last(whole), 0, 0, "-", 0);
    int done = real_mkdirat(at, path, mode), saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return done;
}

int mkdir(const char *path, mode_t mode) { return making(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return making(at, path, mode); }
int link(const char *from, const char *to) {
    char whole[PATH_MAX];
    if (noting && resolve(AT_FDCWD, to, whole)) return errno = EPERM, -1; /* not wanted here */
    return real_linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}
