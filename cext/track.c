/* track.c: the TCP state table. Rows: who sends (client, RS) and the first of RST, SYN, FIN, ACK that is set; columns: state.
 *
 * The names and most entries are those of IPVS and DPVS, so that listings read alike. The differences, each for a reason:
 *  - an RS's plain ACK in SYN_RECV does not establish: it is the challenge ACK of a half-dead socket (RFC 5961 4.2); the
 *    client answers it with a RST that clears that socket and must not end the connection;
 *  - a client's ACK in SYN_RECV establishes only after the RS's SYN-ACK;
 *  - a SYN inside a living connection changes nothing: the RS's challenge ACK decides.
 * Left out: window checks of RST and FIN (RFC 5961 3.2); they would go into track_tcp's caller, which knows next_seq.
 */
#include "track.h"

#include "fnat.h"

#define NO TCP_NONE
#define ES TCP_EST
#define SS TCP_SYN_SENT
#define SR TCP_SYN_RECV
#define FW TCP_FIN_WAIT
#define TW TCP_TIME_WAIT
#define CL TCP_CLOSED
#define CW TCP_CLOSE_WAIT
#define LA TCP_LAST_ACK
#define LI TCP_LISTEN
#define SA TCP_SYNACK

enum event { EVENT_SYN, EVENT_FIN, EVENT_ACK, EVENT_RST, EVENTS };

static const u8 table[2][EVENTS][FNAT_TCP_STATES] =
    {
        [TO_RS] =
            {
                /*              NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA */
                [EVENT_SYN] = {SR, ES, ES, SR, FW, TW, CL, CW, LA, SR, SR},
                [EVENT_FIN] = {CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW},
                [EVENT_ACK] = {CL, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES},
                [EVENT_RST] = {CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR},
            },
        [TO_CLIENT] =
            {
                /*              NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA */
                [EVENT_SYN] = {SS, ES, SS, SR, FW, TW, CL, CW, LA, LI, SR},
                [EVENT_FIN] = {TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW},
                [EVENT_ACK] = {ES, ES, SS, SR, FW, TW, CL, CW, LA, ES, ES},
                [EVENT_RST] = {CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL},
            },
};

u8 track_tcp(u8 state, enum direction dir, u8 flags, bool synack_seen)
{
    enum event event = flags & TCP_RST ? EVENT_RST : flags & TCP_SYN ? EVENT_SYN : flags & TCP_FIN ? EVENT_FIN : EVENT_ACK;
    if (event == EVENT_ACK && !(flags & TCP_ACK))
        return state;
    if (state == TCP_SYN_RECV && dir == TO_RS && !synack_seen)
        return state;
    return table[dir][event][state];
}

const char *track_name(u32 state)
{
    static const char *const names[CONN_STATES] = {
        "TCP_NONE", "TCP_EST", "SYN_SENT", "SYN_RECV", "FIN_WAIT",   "TIME_WAIT", "TCP_CLOSE", "CLOSE_WAIT",
        "LAST_ACK", "LISTEN",  "SYNACK",   "UDP_NONE", "UDP_ONEWAY", "UDP_NORM",  "UDP_LAST",
    };
    return state < CONN_STATES ? names[state] : NULL;
}
