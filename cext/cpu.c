/* cpu.c: a processor that is older than the build gets one line instead of SIGILL.
 *
 * It runs when the library is loaded, before anything else of it, and is itself compiled for every x86-64. What the build needs is what the
 * compiler was told by -march. Unsatisfying: it ends the process, because loading a library cannot fail with words. */
#include <unistd.h>

#ifdef __x86_64__
#define ANY_CPU __attribute__((target("arch=x86-64")))
#define CANNOT_START 2 /* fnat/keeper.py */

ANY_CPU static const char *lacking(void)
{
    __builtin_cpu_init();
#ifdef __AVX512VL__
    if (!__builtin_cpu_supports("avx512vl"))
        return "AVX-512";
#endif
#ifdef __AVX2__
    if (!__builtin_cpu_supports("avx2"))
        return "AVX2";
#endif
#ifdef __BMI2__
    if (!__builtin_cpu_supports("bmi2"))
        return "BMI2";
#endif
    return 0;
}

ANY_CPU static void say(const char *text)
{
    const char *end = text;
    while (*end)
        end++;
    if (write(2, text, (size_t)(end - text)) < 0)
        return;
}

ANY_CPU __attribute__((constructor(101))) static void refuse_an_older_cpu(void)
{
    const char *name = lacking();
    if (!name)
        return;
    say("fnat: this processor has no ");
    say(name);
    say(", which this build uses; build fnat with FNAT_MARCH=x86-64, or use a newer machine (FN-1005)\n");
    _exit(CANNOT_START);
}
#endif
