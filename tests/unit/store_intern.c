/* Names to numbers. */
#include "store/intern.h"
#include "store_test.h"

int main(void)
{
	struct intern in = {0};
	char name[32];
	CHECK(intern_lookup(&in, "a") == 0);
	for (uint32_t i = 1; i <= 5000; i++) {
		snprintf(name, sizeof name, "name-%u", i);
		CHECK(intern_add(&in, name) == i);
	}
	for (uint32_t i = 1; i <= 5000; i++) {
		snprintf(name, sizeof name, "name-%u", i);
		CHECK(intern_add(&in, name) == i && intern_lookup(&in, name) == i);
	}
	CHECK(intern_add(&in, "") == 5001);
	CHECK(intern_reuse(&in, 17, "other") == 0);
	CHECK(intern_lookup(&in, "other") == 17 && intern_lookup(&in, "name-17") == 0 && intern_lookup(&in, "name-18") == 18);
	CHECK(intern_add(&in, "name-17") == 5002);
	intern_done(&in);
	CHECK(intern_lookup(&in, "other") == 0);
	intern_done(&in);
	return 0;
}
