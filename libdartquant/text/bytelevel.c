/* The byte <-> character table of GPT-2's byte-level BPE (Radford et al. 2019): printable Latin-1 stands for itself,
 * the other 68 bytes take U+0100, U+0101, ... in order. SPDX-License-Identifier: Apache-2.0 */
#include "text/parts.h"
#include "text/utf8.h"

static bool printable(int b) { return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad); }

int dq_bytelevel_char(unsigned char byte, char out[4])
{
    int b = byte;
    if (printable(b)) return dq_utf8_write(out, b);
    /* 0..0x20 -> 0x100.., 0x7f..0xa0 -> 0x121.., 0xad -> 0x143 */
    return dq_utf8_write(out, b <= 0x20 ? 0x100 + b : b == 0xad ? 0x143 : 0x121 + (b - 0x7f));
}

int dq_bytelevel_byte(int32_t cp)
{
    if (cp < 0x100) return printable(cp) ? cp : -1;
    if (cp <= 0x120) return cp - 0x100;
    if (cp <= 0x142) return cp - 0x121 + 0x7f;
    return cp == 0x143 ? 0xad : -1;
}
