/* Wrong on purpose: decides by what was never written, and leaks. run_sanitizers.sh sees to it that this is noticed.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    volatile int *number = malloc(sizeof *number);
    if (!number) return 1;
    puts(*number & 1 ? "odd" : "even");
    number = NULL;
    return 0;
}
