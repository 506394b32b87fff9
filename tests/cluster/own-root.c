/* own-root COMMAND...: runs COMMAND in a mount namespace whose root is our root directory.
 *
 * In a chroot the root directory is no mount point, so runc's pivot_root fails with EINVAL, and `exec` into a
 * container would land in the machine's real root. Here the root directory becomes what it is elsewhere: the root of
 * a mount namespace, and nobody else's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>
static void check(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
}
int main(int argc, char **argv) {
    char at[] = "/tmp/own-root.XXXXXX";
    int namespace;
    if (argc < 2) return 2;
    check(unshare(CLONE_NEWNS), "unshare");
    if (!mkdtemp(at)) check(-1, "mkdtemp");
    check(mount("/", at, NULL, MS_BIND | MS_REC, NULL), "bind /");
    check(mount(NULL, at, NULL, MS_PRIVATE | MS_REC, NULL), "make private");
    check(chdir(at), "chdir");
    /* Joining the namespace that we are in sets root and working directory to the namespace's own root; the bound
     * folder is kept open across it. */
    int folder = open(".", O_PATH | O_DIRECTORY);
    check(folder, "open");
    check(namespace = open("/proc/self/ns/mnt", O_RDONLY), "open namespace");
    check(setns(namespace, CLONE_NEWNS), "setns");
    check(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL), "make / private");
    check(fchdir(folder), "fchdir");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount");
    check(chdir("/"), "chdir /");
    rmdir(at);
    close(folder);
    close(namespace);
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    return 127;
}
