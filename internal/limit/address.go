// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Address returns the key of a request: the last address in the given header, or the one in
// RemoteAddr if the header has none or its name is "". For an IPv6 address the key is its first 64
// bits, which belong to one customer. A RemoteAddr that is no address is the key as it stands,
// without a port.
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

// network returns the address in a text that may have a port or brackets: for IPv6 its /64. ok says
// whether the text has an address.
func network(address string) (key string, ok bool) {
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

// wider returns the /48 of an IPv6 address or network: the size that one site gets, with 65,536
// networks. It returns "" for anything else.
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
