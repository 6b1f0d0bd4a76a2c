/* How long the texts of found libvirt VMs are, remembered: ls -l asks for each of them twice, and to make one costs two hundred times a stat(2). */
#ifndef STORE_TEXT_SIZE_H
#define STORE_TEXT_SIZE_H

struct text_sizes;

int text_sizes_new(struct text_sizes **ret);
void text_sizes_free(struct text_sizes *sizes);

#endif
