/* libdartquant: everything public in one include.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_H
#define DARTQUANT_H

#include "dartquant/types.h"
#include "dartquant/error.h"
#include "dartquant/progress.h"
#include "dartquant/context.h"

#endif
