#ifndef CE_HUGEPAGES_H
#define CE_HUGEPAGES_H

/* Put the memory and the program text of this process into huge pages, where they fill them and the
 * kernel has any. Nothing is to be executed meanwhile by another thread that could not wait. */
void use_huge_pages(void);

#endif
