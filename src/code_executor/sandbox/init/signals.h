/* Signals as a new program expects them. */
#ifndef CE_SIGNALS_H
#define CE_SIGNALS_H

/* Every signal to its default action. */
void default_signals(void);

#endif
