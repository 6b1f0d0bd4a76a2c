#include "fs/job_numbers.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "store/intern.h"

struct job_numbers {
	pthread_mutex_t lock;
	struct intern names; /* protected by lock */
};

int job_numbers_new(struct job_numbers **ret)
{
	struct job_numbers *numbers = calloc(1, sizeof *numbers);
	if (!numbers)
		return -ENOMEM;
	pthread_mutex_init(&numbers->lock, NULL);
	*ret = numbers;
	return 0;
}

void job_numbers_free(struct job_numbers *numbers)
{
	if (!numbers)
		return;
	intern_done(&numbers->names);
	pthread_mutex_destroy(&numbers->lock);
	free(numbers);
}

uint32_t job_numbers_get(struct job_numbers *numbers, const char *name)
{
	pthread_mutex_lock(&numbers->lock);
	uint32_t number = intern_add(&numbers->names, name);
	pthread_mutex_unlock(&numbers->lock);
	return number;
}

char *job_numbers_name(struct job_numbers *numbers, uint32_t number)
{
	pthread_mutex_lock(&numbers->lock);
	char *name = number && number <= numbers->names.nr_names ? strdup(numbers->names.names[number - 1]) : NULL;
	pthread_mutex_unlock(&numbers->lock);
	return name;
}
