// libseccomp as an oracle: reads profiles, writes the programs that it makes of them. gcc -static libseccomp.c -lseccomp
//   names ARCHITECTURE, then NAME...     each one's number, as a line; -1 is an unknown one
//   filter ACTION ARCHITECTURE...        a filter, with the first architecture instead of the machine's own
//   rule ACTION NAME [ARGUMENT OPERATOR VALUE SECOND]...
//   end                                  the error of the first rule that was refused, the number of instructions,
//                                        and these, as numbers of 4 and instructions of 8 bytes
#define _GNU_SOURCE
#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void put(uint32_t number) { fwrite(&number, sizeof number, 1, stdout); }

static void end(scmp_filter_ctx filter, uint32_t refused) {
    int file = memfd_create("program", 0);
    if (seccomp_export_bpf(filter, file) != 0) abort();
    off_t length = lseek(file, 0, SEEK_END);
    char *program = malloc(length);
    if (pread(file, program, length, 0) != length) abort();
    put(refused);
    put(length / 8);
    fwrite(program, 1, length, stdout);
    free(program);
    close(file);
    seccomp_release(filter);
}

static const char *word(void) { return strtok(NULL, " \n"); }

// libseccomp 2.5.4 crashes on some rules, and never ends on others: so each filter has a process of its own.
static int crashed(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(1);
        return 0;
    }
    int status;
    if (waitpid(child, &status, 0) != child) abort();
    if (status == 0) return 1;
    put(EFAULT);
    put(0);
    return 1;
}

int main(void) {
    char *line = NULL, *text = NULL;
    size_t size = 0, length;
    // Whole, into memory: two processes would share the place in a file.
    if (getdelim(&text, &length, 0, stdin) <= 0) abort();
    FILE *lines = fmemopen(text, strlen(text), "r");
    scmp_filter_ctx filter = NULL;
    uint32_t refused = 0, architecture = 0;
    int skip = 0;
    while (getline(&line, &size, lines) > 0) {
        const char *what = strtok(line, " \n"), *next;
        if (!strcmp(what, "names")) {
            architecture = seccomp_arch_resolve_name(word());
            while ((next = word())) put(seccomp_syscall_resolve_name_arch(architecture, next));
        } else if (!strcmp(what, "filter")) {
            skip = crashed();
            if (skip) continue;
            filter = seccomp_init(strtoul(word(), NULL, 0));
            seccomp_arch_remove(filter, SCMP_ARCH_NATIVE);
            while ((next = word())) {
                if (seccomp_arch_add(filter, seccomp_arch_resolve_name(next)) != 0) abort();
            }
        } else if (skip) {
            continue;
        } else if (!strcmp(what, "rule")) {
            uint32_t action = strtoul(word(), NULL, 0);
            int number = seccomp_syscall_resolve_name(word());
            struct scmp_arg_cmp conditions[6];
            int count = 0;
            while ((next = word())) {
                struct scmp_arg_cmp *condition = &conditions[count++];
                condition->arg = strtoul(next, NULL, 0);
                condition->op = strtoul(word(), NULL, 0);
                condition->datum_a = strtoull(word(), NULL, 0);
                condition->datum_b = strtoull(word(), NULL, 0);
            }
            int result = seccomp_rule_add_array(filter, action, number, count, conditions);
            if (result != 0 && refused == 0) refused = -result;
        } else if (!strcmp(what, "end")) {
            end(filter, refused);
            fflush(stdout);
            _exit(0);
        } else {
            abort();
        }
    }
    return 0;
}
