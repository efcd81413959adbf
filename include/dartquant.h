/* libdartquant: everything public in one include, but for dartquant/backend.h, which is for those who write a backend.
 *
 * Rules that hold for every function:
 * - A fallible function returns dq_status first of all: DQ_OK, or a negative code with details in dq_error_text() and its
 *   siblings (dartquant/error.h). It resets the thread's error record on entry; on failure outputs are untouched and
 *   nothing needs cleaning up. NULL where an object is required is DQ_E_INVALID, never a crash.
 * - Handles are made by _new / _open / _from_*, freed by _free (NULL allowed) in any order. take_* moves ownership to the
 *   caller, copy_* fills the caller's buffer, text returned through const char ** is borrowed.
 * - Objects of one context may be used by one thread at a time; different contexts are independent. A call that overlaps
 *   another of its context, from a second thread or from inside a callback, is refused with DQ_E_STATE. _free may come at any
 *   time: an object that is freed during a call stays until the call returns. dq_cancel_set may be called from any thread
 *   and from a signal handler. Callbacks come on the calling thread.
 * - Text is UTF-8. Sizes are size_t or int64_t, never long. The library never aborts, exits, prints, installs signal
 *   handlers or reads environment variables.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_H
#define DARTQUANT_H

#include "dartquant/types.h"
#include "dartquant/version.h"
#include "dartquant/error.h"
#include "dartquant/progress.h"
#include "dartquant/config.h"
#include "dartquant/context.h"
#include "dartquant/tensors.h"
#include "dartquant/tokenizer.h"
#include "dartquant/dataset.h"
#include "dartquant/model.h"
#include "dartquant/rotation.h"
#include "dartquant/quantizer.h"
#include "dartquant/calibrator.h"
#include "dartquant/evaluator.h"
#include "dartquant/reference.h"
#include "dartquant/generator.h"
#include "dartquant/checkpoint.h"
#include "dartquant/source.h"
#include "dartquant/tensor_ops.h"
#include "dartquant/benchmark.h"

#endif
