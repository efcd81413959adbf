/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_EXPORT_GGUF_PARTS_H
#define DQ_EXPORT_GGUF_PARTS_H

#include "export/parts.h"
#include "io/gguf_writer.h"

/* The keys tokenizer.*: from a GGUF source as they stand, else from tokenizer.json and tokenizer_config.json. */
dq_status dq_export_gguf_vocab(const dq_export_plan *plan, dq_gguf_writer *w);

#endif
