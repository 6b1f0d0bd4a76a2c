/* Numbers for the jobs' names, which node numbers are made of. A job's name is that of what it works for, so they are few. */
#ifndef FS_JOB_NUMBERS_H
#define FS_JOB_NUMBERS_H

#include <stdint.h>

struct job_numbers;

int job_numbers_new(struct job_numbers **ret);
void job_numbers_free(struct job_numbers *numbers);

uint32_t job_numbers_get(struct job_numbers *numbers, const char *name); /* 0: memory is out */
char *job_numbers_name(struct job_numbers *numbers, uint32_t number);	 /* the caller frees; NULL: no such number */

#endif
