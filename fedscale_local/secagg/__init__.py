"""Secure aggregation: the sum of the clients' vectors, and nothing else of them, reaches the server.

After SecAgg+ (Bell, Bonawitz, Gascon, Lepoint and Raykova, CCS 2020), for a server that is honest but curious. Client i
with the quantised, weighted vector w_i q_i and the neighbours N(i) in a graph sends

    y_i = w_i q_i + mask(b_i) + sum_{j in N(i), i < j} mask(s_ij) - sum_{j in N(i), j < i} mask(s_ij)     mod 2^R

in four stages, each one exchange of messages:

    keys     each client: fresh public keys, one for encrypting and one for masking
    shares   each client: Shamir shares of b_i and of its masking key for N(i) and itself, encrypted for their holders
    masked   each client: y_i
    unmask   each client, for each neighbour j: its share of b_j if y_j came, else of j's masking key, never both

The modules here are pure but for the operating system's random numbers; messages are made of them in clients/secure.py
and strategies/secure.py. docs/explanation-secure-aggregation.md tells what the server still learns, and departures.
"""
