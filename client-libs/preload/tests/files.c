/* What programs do with files. Arguments: what to do, and the directory to do it in. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)                                                                        \
    do {                                                                                   \
        if (!(what)) {                                                                     \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #what, strerror(errno)); \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)
#define FAILS(what, how) (errno = 0, (what) == -1 && errno == (how))

/* Three parts, and the last of them is a short one. */
enum { LARGE = (36 << 20) + 12345, SMALL = 70000, THREADS = 6, ROUNDS = 8 };

static const char *directory;
/* Whether the directory is one of the local disk. */
static int local;

/* A path of the directory; good until the eighth after it. */
static const char *at(const char *name)
{
    static __thread char paths[8][4096];
    static __thread int next;
    char *path = paths[next++ % 8];
    snprintf(path, 4096, "%s/%s", directory, name);
    return path;
}

static unsigned char *pattern(size_t length, unsigned salt)
{
    unsigned char *data = malloc(length);
    for (size_t place = 0; place < length; place++)
        data[place] = (unsigned char)((place * 2654435761u + salt) >> 13);
    return data;
}

static void write_all(const char *path, const void *data, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    CHECK(fd >= 0);
    CHECK(write(fd, data, length) == (ssize_t)length);
    CHECK(close(fd) == 0);
}

static void holds(const char *path, const void *data, size_t length)
{
    char *got = malloc(length + 1);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    size_t done = 0;
    ssize_t count;
    while ((count = read(fd, got + done, length + 1 - done)) > 0)
        done += (size_t)count;
    CHECK(count == 0 && done == length && memcmp(got, data, length) == 0);
    CHECK(close(fd) == 0);
    free(got);
}

static void streams(void)
{
    unsigned char *large = pattern(LARGE, 1), *got = malloc(LARGE);
    FILE *file = fopen(at("large"), "wb");
    CHECK(file != NULL);
    CHECK(fwrite(large, 1, 128, file) == 128);
    /* As numpy does it: the payload goes through a stream around a duplicate. */
    CHECK(fflush(file) == 0);
    int twin = fcntl(fileno(file), F_DUPFD_CLOEXEC, 0);
    CHECK(twin >= 0);
    FILE *second = fdopen(twin, "wb");
    CHECK(second != NULL && fwrite(large + 128, 1, LARGE - 128, second) == LARGE - 128);
    CHECK(fclose(second) == 0);
    struct stat status;
    CHECK(stat(at("large"), &status) == 0 && status.st_size == LARGE);
    CHECK(fsync(fileno(file)) == 0);
    CHECK(fclose(file) == 0);

    file = fopen(at("large"), "rb");
    CHECK(file != NULL && fread(got, 1, LARGE, file) == LARGE && fgetc(file) == EOF);
    CHECK(memcmp(got, large, LARGE) == 0);
    CHECK(fseeko(file, 20 << 20, SEEK_SET) == 0 && fread(got, 1, 9, file) == 9);
    CHECK(memcmp(got, large + (20 << 20), 9) == 0 && ftello(file) == (20 << 20) + 9);
    CHECK(fclose(file) == 0);

    file = fopen(at("notes"), "w");
    CHECK(file != NULL && fprintf(file, "one %d\n", 1) == 6 && fclose(file) == 0);
    file = fopen64(at("notes"), "a");
    CHECK(file != NULL && fputs("two\n", file) >= 0 && fclose(file) == 0);
    file = fopen(at("notes"), "r+");
    CHECK(file != NULL && fputs("ONE", file) >= 0 && fclose(file) == 0);
    holds(at("notes"), "ONE 1\ntwo\n", 10);
    CHECK(fopen(at("nothing"), "r") == NULL && errno == ENOENT);
    CHECK(fopen(at("notes"), "wx") == NULL && errno == EEXIST);
    /* What nobody closes is stored at the end of the process. */
    file = fopen(at("left open"), "w");
    CHECK(file != NULL && fputs("and yet stored", file) >= 0);
    free(large);
    free(got);
}

static void descriptors(void)
{
    unsigned char *small = pattern(SMALL, 2);
    char got[16];
    struct stat status;
    write_all(at("small"), small, SMALL);
    holds(at("small"), small, SMALL);
    CHECK(FAILS(open(at("small"), O_WRONLY | O_CREAT | O_EXCL, 0644), EEXIST));
    CHECK(FAILS(open(at("nothing"), O_RDONLY), ENOENT));
    CHECK(FAILS(open(at("nothing"), O_RDWR), ENOENT));
    int fd = open(at("empty"), O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0 && close(fd) == 0);
    holds(at("empty"), "", 0);

    /* Changed in the middle, appended to, cut. */
    fd = open(at("small"), O_RDWR);
    CHECK(fd >= 0 && fstat(fd, &status) == 0 && status.st_size == SMALL);
    CHECK(S_ISREG(status.st_mode) && status.st_nlink == 1);
    CHECK(pwrite(fd, "here", 4, 1000) == 4 && pread(fd, got, 4, 1000) == 4);
    CHECK(ftruncate(fd, 2000) == 0 && close(fd) == 0);
    memcpy(small + 1000, "here", 4);
    holds(at("small"), small, 2000);
    fd = openat(AT_FDCWD, at("small"), O_WRONLY | O_APPEND);
    CHECK(fd >= 0 && write(fd, "end", 3) == 3 && close(fd) == 0);
    memcpy(small + 2000, "end", 3);
    holds(at("small"), small, 2003);

    /* Written by a mapping alone. */
    fd = open(at("mapped"), O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0 && ftruncate(fd, 5000) == 0 && fsync(fd) == 0);
    char *mapping = mmap(NULL, 5000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(mapping != MAP_FAILED);
    memset(mapping, 'm', 5000);
    CHECK(close(fd) == 0 && munmap(mapping, 5000) == 0);
    char *whole = malloc(5000);
    memset(whole, 'm', 5000);
    holds(at("mapped"), whole, 5000);
    free(whole);

    /* The last of several descriptors stores it. */
    fd = open(at("twice"), O_WRONLY | O_CREAT, 0644);
    int twin = dup(fd), third = dup2(fd, 200);
    CHECK(twin >= 0 && third == 200 && dup3(fd, 201, O_CLOEXEC) == 201);
    CHECK(write(fd, "a", 1) == 1 && close(fd) == 0);
    CHECK(write(twin, "b", 1) == 1 && close(twin) == 0 && close(201) == 0);
    CHECK(write(third, "c", 1) == 1);
    /* Another is put in its place, which closes it. */
    int zero = open("/dev/null", O_RDONLY);
    CHECK(zero >= 0 && dup2(zero, third) == third && close(zero) == 0 && close(third) == 0);
    holds(at("twice"), "abc", 3);
    free(small);
}

static void names(void)
{
    struct stat status, other;
    struct statx extended;
    struct statvfs space;
    CHECK(mkdir(at("sub"), 0755) == 0);
    CHECK(FAILS(mkdir(at("sub"), 0755), EEXIST));
    CHECK(stat(at("sub"), &status) == 0 && S_ISDIR(status.st_mode));
    CHECK(stat(directory, &status) == 0 && S_ISDIR(status.st_mode));
    write_all(at("sub/file"), "inside", 6);
    CHECK(FAILS(rmdir(at("sub")), ENOTEMPTY));
    CHECK(lstat(at("sub/./../sub//file"), &status) == 0 && status.st_size == 6);
    CHECK(fstatat(AT_FDCWD, at("sub/file"), &other, 0) == 0 && other.st_ino == status.st_ino);
    CHECK(statx(AT_FDCWD, at("sub/file"), 0, STATX_SIZE, &extended) == 0);
    CHECK(extended.stx_size == 6 && extended.stx_ino == status.st_ino);
    int fd = open(at("sub/file"), O_RDONLY);
    CHECK(fd >= 0 && fstat(fd, &other) == 0);
    CHECK(other.st_ino == status.st_ino && other.st_dev == status.st_dev && close(fd) == 0);
    CHECK(access(at("sub/file"), R_OK | W_OK) == 0 && FAILS(access(at("sub/file"), X_OK), EACCES));
    CHECK(FAILS(access(at("sub/none"), F_OK), ENOENT));
    CHECK(faccessat(AT_FDCWD, at("sub/file"), F_OK, 0) == 0);
    CHECK(statvfs(directory, &space) == 0 && space.f_bavail == space.f_blocks);
    /* The server has said how much it has, and that some of it is taken. */
    CHECK(space.f_blocks > 0 && space.f_blocks < (1ull << 40) / space.f_frsize);
    CHECK(space.f_bfree <= space.f_blocks);

    CHECK(rename(at("sub/file"), at("moved")) == 0);
    CHECK(FAILS(stat(at("sub/file"), &status), ENOENT));
    holds(at("moved"), "inside", 6);
    write_all(at("second"), "the second", 10);
    CHECK(rename(at("second"), at("moved")) == 0);
    holds(at("moved"), "the second", 10);
    CHECK(FAILS(renameat2(AT_FDCWD, at("notes"), AT_FDCWD, at("moved"), RENAME_NOREPLACE), EEXIST));
    CHECK(renameat2(AT_FDCWD, at("moved"), AT_FDCWD, at("again"), RENAME_NOREPLACE) == 0);
    CHECK(renameat(AT_FDCWD, at("again"), AT_FDCWD, at("moved")) == 0);
    CHECK(FAILS(rename(at("moved"), "/nowhere"), EXDEV));
    CHECK(FAILS(rename(at("none"), at("moved")), ENOENT));
    /* A directory can be synced, and nothing in it is reached by a relative path. */
    CHECK(FAILS(open(at("notes"), O_RDONLY | O_DIRECTORY), ENOTDIR));
    CHECK(FAILS(open(at("sub"), O_WRONLY), EISDIR));
    fd = open(at("sub"), O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0 && fsync(fd) == 0 && FAILS(openat(fd, "file", O_CREAT | O_WRONLY, 0644), ENOTDIR));
    CHECK(close(fd) == 0);
    CHECK(rmdir(at("sub")) == 0 && FAILS(stat(at("sub"), &status), ENOENT));
    CHECK(unlink(at("moved")) == 0 && FAILS(unlink(at("moved")), ENOENT));
    CHECK(FAILS(stat(at("moved"), &status), ENOENT));

    /* What is unlinked while it is open is not stored; what is renamed is, by its new name. */
    fd = open(at("brief"), O_WRONLY | O_CREAT, 0644);
    CHECK(fd >= 0 && write(fd, "x", 1) == 1 && unlink(at("brief")) == 0 && close(fd) == 0);
    CHECK(FAILS(stat(at("brief"), &status), ENOENT));
    fd = open(at("half"), O_WRONLY | O_CREAT, 0644);
    CHECK(fd >= 0 && write(fd, "whole", 5) == 5 && rename(at("half"), at("renamed")) == 0);
    CHECK(close(fd) == 0 && FAILS(stat(at("half"), &status), ENOENT));
    holds(at("renamed"), "whole", 5);
    CHECK(remove(at("renamed")) == 0);
    CHECK(FAILS(chdir(directory), ENOTSUP));
    char name[600];
    memset(name, 'n', sizeof name);
    name[599] = 0;
    CHECK(FAILS(open(at(name), O_WRONLY | O_CREAT, 0644), ENAMETOOLONG));
}

/* What the first process left, and in which order does not matter. */
static void second_process(void)
{
    const char *expected[] = {"large", "notes", "left open", "small", "empty", "mapped", "twice"};
    unsigned found = 0, count = sizeof expected / sizeof *expected;
    DIR *stream = opendir(directory);
    CHECK(stream != NULL);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        for (unsigned place = 0; place < count; place++)
            if (strcmp(entry->d_name, expected[place]) == 0) {
                CHECK(entry->d_type == DT_REG && !(found & 1u << place));
                found |= 1u << place;
            }
    CHECK(closedir(stream) == 0 && found == (1u << count) - 1);
    CHECK(opendir(at("none")) == NULL && errno == ENOENT);
    unsigned char *large = pattern(LARGE, 1);
    char got[16];
    holds(at("large"), large, LARGE);
    holds(at("left open"), "and yet stored", 14);
    holds(at("twice"), "abc", 3);

    /* Opened, looked at and closed: nothing is fetched for that. Nor does who reads by a way that is not seen
       find anything but an error, until it is. */
    struct stat status;
    int fd = open(at("large"), O_RDONLY);
    CHECK(fd >= 0 && fstat(fd, &status) == 0 && status.st_size == LARGE);
    CHECK(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
    CHECK(FAILS(syscall(SYS_read, fd, got, 4), EBADF));
    CHECK(lseek(fd, -5, SEEK_END) == LARGE - 5);
    CHECK(syscall(SYS_read, fd, got, 9) == 5 && memcmp(got, large + LARGE - 5, 5) == 0);
    struct iovec part = {got, 3};
    CHECK(preadv(fd, &part, 1, 16777215) == 3 && memcmp(got, large + 16777215, 3) == 0);
    CHECK(FAILS(write(fd, "no", 2), EBADF) && close(fd) == 0);
    fd = open(at("large"), O_RDONLY);
    unsigned char *mapping = mmap(NULL, LARGE, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(mapping != MAP_FAILED && memcmp(mapping, large, LARGE) == 0 && close(fd) == 0);
    CHECK(munmap(mapping, LARGE) == 0);
    free(large);
}

static void *thread(void *number)
{
    char name[64];
    unsigned salt = *(unsigned *)number;
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t length = 1000 + (salt * ROUNDS + round) * 45678;
        unsigned char *data = pattern(length, salt);
        snprintf(name, sizeof name, "thread-%u-%u", salt, round);
        write_all(at(name), data, length);
        holds(at(name), data, length);
        free(data);
    }
    return NULL;
}

static void threads(void)
{
    pthread_t running[THREADS];
    unsigned numbers[THREADS];
    for (unsigned place = 0; place < THREADS; place++) {
        numbers[place] = place;
        CHECK(pthread_create(&running[place], NULL, thread, &numbers[place]) == 0);
    }
    /* Children that are born in the middle of it use files of their own, and leave their parent's alone. */
    for (int round = 0; round < 5; round++) {
        int inherited = open(at("inherited"), O_RDWR | O_CREAT | O_TRUNC, 0644);
        CHECK(inherited >= 0 && write(inherited, "of the parent", 13) == 13);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            struct stat status;
            CHECK(close(inherited) == 0);
            errno = 0;
            int known = stat(at("inherited"), &status);
            CHECK(local || (known == -1 && errno == ENOENT));
            write_all(at("of the child"), "child", 5);
            holds(at("of the child"), "child", 5);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CHECK(close(inherited) == 0);
        holds(at("inherited"), "of the parent", 13);
        holds(at("of the child"), "child", 5);
        CHECK(unlink(at("inherited")) == 0 && unlink(at("of the child")) == 0);
    }
    for (unsigned place = 0; place < THREADS; place++)
        CHECK(pthread_join(running[place], NULL) == 0);
    unsigned count = 0;
    DIR *stream = opendir(directory);
    CHECK(stream != NULL);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        count += strncmp(entry->d_name, "thread-", 7) == 0;
    CHECK(closedir(stream) == 0 && count == THREADS * ROUNDS);
}

/* Files by names that no other process gives. */
static void many(void)
{
    char name[64];
    for (int round = 0; round < 40; round++) {
        snprintf(name, sizeof name, "many-%d-%d", (int)getpid(), round);
        write_all(at(name), name, strlen(name));
    }
}

static void count_them(void)
{
    unsigned count = 0;
    DIR *stream = opendir(directory);
    CHECK(stream != NULL);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        count += strncmp(entry->d_name, "many-", 5) == 0;
    CHECK(closedir(stream) == 0);
    printf("%u files, ", count);
}

/* A part of it is not there any more: it is no file, until it is written anew. */
static void maimed(void)
{
    CHECK(FAILS(open(at("large"), O_RDONLY), ENOENT));
    CHECK(fopen(at("large"), "r") == NULL && errno == ENOENT);
    write_all(at("large"), "small", 5);
    holds(at("large"), "small", 5);
}

/* The server goes between opening and closing. */
static void gone(void)
{
    char line[8];
    struct stat status;
    write_all(at("before"), "stored", 6);
    int fd = open(at("file"), O_WRONLY | O_CREAT, 0644);
    FILE *file = fopen(at("stream"), "w");
    CHECK(fd >= 0 && file != NULL && write(fd, "lost", 4) == 4 && fputs("lost", file) >= 0);
    puts("open");
    fflush(stdout);
    CHECK(fgets(line, sizeof line, stdin) != NULL);
    /* What cannot be removed is still to be stored, and told of when it is not. */
    CHECK(FAILS(unlink(at("file")), EIO));
    CHECK(FAILS(fsync(fd), EIO));
    CHECK(FAILS(close(fd), EIO) && FAILS(close(fd), EBADF));
    errno = 0;
    CHECK(fclose(file) == EOF && errno == EIO);
    CHECK(FAILS(open(at("before"), O_RDONLY), EIO));
    CHECK(FAILS(open(at("after"), O_WRONLY | O_CREAT, 0644), EIO));
    CHECK(FAILS(stat(at("before"), &status), EIO));
    CHECK(FAILS(unlink(at("before")), EIO));
}

int main(int count, char **arguments)
{
    CHECK(count == 3);
    directory = arguments[2];
    const char *prefix = getenv("MEMKV_PRELOAD_PREFIX");
    local = prefix == NULL || strcmp(prefix, directory) != 0;
    if (strcmp(arguments[1], "write") == 0) {
        streams();
        descriptors();
        names();
    } else if (strcmp(arguments[1], "read") == 0) {
        second_process();
    } else if (strcmp(arguments[1], "threads") == 0) {
        threads();
    } else if (strcmp(arguments[1], "many") == 0) {
        many();
    } else if (strcmp(arguments[1], "count") == 0) {
        count_them();
    } else if (strcmp(arguments[1], "maimed") == 0) {
        maimed();
    } else if (strcmp(arguments[1], "gone") == 0) {
        gone();
    } else {
        CHECK(!"one of these");
    }
    puts("done");
    return 0;
}
