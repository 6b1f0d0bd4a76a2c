/* What a unit test expects: the first thing that isn't so ends it. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(what)                                                                                                    \
	do {                                                                                                           \
		if (!(what)) {                                                                                         \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                                      \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

#endif
