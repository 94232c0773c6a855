# SPDX-License-Identifier: GPL-2.0-or-later
#
# A guest that fits in a boot sector: it writes 4 KiB blocks to the first disk, for ever, and numbers them.
#
#     sector 0     this code
#     sector 1     the number of block writes that are finished (u32, little-endian), read again at the next start
#     sector 8...  the data area: `area` blocks of 4 KiB
#
# Write number n (from 0) goes to block (n * `stride`) mod `area` of the data area and fills it with the u32 n.
# So the number in sector 1 tells what the whole data area must hold, but for the one write after it.
#
# INT 13h does the I/O, so that the disk may be IDE or virtio-blk. Assembled by real_qemu.guest_disk() with
#     as --32 -o boot.o boot.S && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o boot.bin boot.o
# and `limit`, `area` and `stride` (the last two below 65536) are patched at 0x1f2, 0x1f6 and 0x1fa. After write number
# `limit` the guest leaves the disk alone and keeps changing 96 pages of memory.

        .code16
        .globl  _start
_start:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        sti
        cld
        mov     %dl, drive

        movw    $1, sectors             # where were we?
        movl    $1, lba
        mov     $0x42, %ah
        call    disk
        mov     buffer, %ebx            # ebx = n

next:
        cmp     %ebx, limit
        je      idle
        mov     $buffer, %di            # fill the block with n
        mov     %ebx, %eax
        mov     $1024, %cx
        rep stosl

        mov     %ebx, %eax              # where it goes: 8 + 8 * ((n mod area) * stride mod area)
        xor     %edx, %edx
        divl    area
        mov     %edx, %eax
        mull    stride
        divl    area
        shl     $3, %edx
        add     $8, %edx
        mov     %edx, lba
        movw    $8, sectors
        mov     $0x43, %ah
        call    disk

        inc     %ebx                    # finished: say so
        mov     %ebx, buffer
        movl    $1, lba
        movw    $1, sectors
        mov     $0x43, %ah
        call    disk
        jmp     next

idle:                                   # one word in each page from 0x20000 to 0x7ffff
        inc     %ebx
        mov     $0x2000, %ax
1:      mov     %ax, %es
        mov     %ebx, %es:0x10
        add     $0x100, %ax
        cmp     $0x8000, %ax
        jne     1b
        jmp     idle

disk:   # INT 13h extension %ah (0x42 read, 0x43 write) on the packet; keeps ebx; stops for good when it fails
        push    %ebx
        xor     %al, %al
        mov     drive, %dl
        mov     $packet, %si
        int     $0x13
1:      jc      1b
        pop     %ebx
        ret

        .balign 4
packet: .byte   16, 0
sectors: .word  1
        .word   buffer, 0
lba:    .long   1, 0
drive:  .byte   0

        .org    0x1f2
limit:  .long   0xffffffff
area:   .long   256
stride: .long   1
        .byte   0x55, 0xaa              # 0x1fe

        .set    buffer, 0x8000
