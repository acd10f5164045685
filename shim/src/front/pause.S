/* The pod's pause for a shim that has none of its own: it holds namespaces, and does nothing.

   SIGCHLD is ignored, so that the kernel reaps what is orphaned in a pid namespace whose pid 1 this is. Nothing is ever
   allocated, opened or linked: it is the only file of its root. */

        .section .rodata
        .balign 8
ignore: .quad   1               /* SIG_IGN */
        .quad   0, 0, 0         /* flags, restorer, mask */

        .text
        .globl  _start
        .type   _start, %function
_start:
#if defined(__x86_64__)
        movl    $13, %eax       /* rt_sigaction(SIGCHLD, &ignore, NULL, 8) */
        movl    $17, %edi
        leaq    ignore(%rip), %rsi
        xorl    %edx, %edx
        movl    $8, %r10d
        syscall
1:      movl    $34, %eax       /* pause() */
        syscall
        jmp     1b
#elif defined(__aarch64__)
        mov     x8, #134        /* rt_sigaction(SIGCHLD, &ignore, NULL, 8) */
        mov     x0, #17
        adrp    x1, ignore
        add     x1, x1, :lo12:ignore
        mov     x2, #0
        mov     x3, #8
        svc     #0
1:      mov     x8, #73         /* ppoll(NULL, 0, NULL, NULL, 0) */
        mov     x0, #0
        mov     x1, #0
        mov     x2, #0
        mov     x3, #0
        mov     x4, #0
        svc     #0
        b       1b
#else
#error "the pause is written for x86_64 and aarch64"
#endif
        .section .note.GNU-stack, "", %progbits
