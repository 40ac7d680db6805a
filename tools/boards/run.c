/* Runs a model on images and says its logits by semihosting, for the emulator that `make mcu` starts. */
#include <stdint.h>
#include <string.h>

#include "images.h"
#include "micronet.h"

#define SYSTICK ((volatile uint32_t *)0xE000E010u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)
#define STACK_BYTES 8192u
#define PAINT 0x5AA5C33Cu
#define LOOPS 1000000u

extern uint32_t stack_top, stack_limit, bss_start, bss_end, data_start, data_end, data_load;

static volatile uint32_t wraps;

void reset(void);
static void stop(void);
static void tick(void);

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&stack_top, reset, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, tick,
};

static void semihosting(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

static void say(const char *text)
{
    semihosting(0x04, text);
}

static void say_number(char before, int64_t number)
{
    char text[24];
    char *at = text + sizeof text - 1;
    uint64_t left = number < 0 ? 0u - (uint64_t)number : (uint64_t)number;
    *at = 0;
    do {
        *--at = (char)('0' + left % 10u);
        left /= 10u;
    } while (left);
    if (number < 0)
        *--at = '-';
    *--at = before;
    say(at);
}

static void stop(void)
{
    static const uint32_t failed[2] = {0x20026u, 1u};
    say("fault\n");
    semihosting(0x20, failed);
    for (;;) { }
}

static void tick(void)
{
    wraps++;
}

static void start_clock(void)
{
    wraps = 0;
    SYSTICK[1] = 0xFFFFFFu;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7;
}

static uint64_t ticks(void)
{
    const uint32_t now = SYSTICK[2];
    SYSTICK[0] = 0;
    return ((uint64_t)wraps << 24) + (0xFFFFFFu - now);
}

void reset(void)
{
    static const uint32_t done[2] = {0x20026u, 0u};
    static int32_t logits[MICRONET_CLASSES];
    uint32_t loops = LOOPS, *at;
    int image, i;
    CPACR |= 0xFu << 20; /* the vector unit, where there is one */
    __asm__ volatile("dsb\n isb");
    memcpy(&data_start, &data_load, (size_t)((char *)&data_end - (char *)&data_start));
    memset(&bss_start, 0, (size_t)((char *)&bss_end - (char *)&bss_start));
    for (at = &stack_limit; at < (uint32_t *)__builtin_frame_address(0) - 64; at++)
        *at = PAINT;
    start_clock();
    __asm__ volatile("1: subs %0, %0, #1\n bne 1b" : "+r"(loops) : : "cc");
    say_number('C', (int64_t)ticks()); /* of 2 * LOOPS instructions */
    say("\n");
    for (image = 0; image < IMAGES; image++) {
        start_clock();
        i = micronet_classify(images[image], logits);
        say_number('T', (int64_t)ticks());
        say_number(' ', i);
        for (i = 0; i < MICRONET_CLASSES; i++)
            say_number(' ', logits[i]);
        say("\n");
    }
    for (at = &stack_limit; *at == PAINT; at++) { }
    say_number('S', (char *)&stack_top - (char *)at);
    say("\n");
    semihosting(0x20, done);
    for (;;) { }
}
