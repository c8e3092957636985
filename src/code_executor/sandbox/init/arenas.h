/* Where the interpreter's small objects lie. */
#ifndef CE_ARENAS_H
#define CE_ARENAS_H

/* From here on side by side, for as long as the interpreter warms up. */
void arenas_begin(void);
/* It is warm: what it asks for now comes as usual. */
void arenas_end(void);
/* Leave a child no free memory between what is used. */
void arenas_use_up(void);

#endif
