// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Address is the key of a request: the last address in the header of that name, or else in
// RemoteAddr; of an IPv6 address its first 64 bits, which one customer has. A RemoteAddr that is no
// address is the key as it stands, without a port. header "" = RemoteAddr.
func Address(r *http.Request, header string) string {
	if header != "" {
		if values := r.Header.Values(header); len(values) > 0 {
			last := values[len(values)-1]
			last = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
			if key, ok := network(last); ok {
				return key
			}
		}
	}
	key, _ := network(r.RemoteAddr)
	return key
}

// network is the address in one that may have a port or stand in brackets, of IPv6 its /64; and
// whether it is one.
func network(address string) (string, bool) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
		if inner, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inner, "]") {
			host = strings.TrimSuffix(inner, "]")
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return host, false
	}
	if a = a.Unmap().WithZone(""); a.Is6() {
		return netip.PrefixFrom(a, 64).Masked().String(), true
	}
	return a.String(), true
}

// wider is the /48 that an IPv6 address or network is in: what one site gets, with 65,536 networks
// of its own. "" for anything else.
func wider(key string) string {
	a, err := netip.ParseAddr(key)
	if err != nil {
		p, err := netip.ParsePrefix(key)
		if err != nil || p.Bits() <= 48 {
			return ""
		}
		a = p.Addr()
	}
	if a = a.Unmap().WithZone(""); !a.Is6() {
		return ""
	}
	return netip.PrefixFrom(a, 48).Masked().String()
}
