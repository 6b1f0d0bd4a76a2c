/* Mutations of texts: of XML as a tree, so that it stays XML, and of anything by its bytes. */
#ifndef FUZZ_TEXTS_H
#define FUZZ_TEXTS_H

#include "fuzz.h"

/* What LLVMFuzzerCustomMutator says of the text between START and its end, a NUL or the input's end. */
size_t texts_mutate(uint8_t *data, size_t start, size_t size, size_t max_size, unsigned seed);

#endif
