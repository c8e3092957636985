/* Where the interpreter's small objects lie. */
#ifndef CE_ARENAS_H
#define CE_ARENAS_H

/* From here on side by side, for as long as the interpreter warms up. */
void arenas_begin(void);
/* It is warm: what it asks for now comes as usual. */
void arenas_end(void);

#endif
