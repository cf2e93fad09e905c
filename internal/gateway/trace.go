// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import "net/http"

const headerTrace = "Traceparent"

// trace passes the traceparent of a request on to the header for the upstream, if the operator
// wants it. What is not well-formed stays away: the request does not depend on it.
func (h *request) trace(to, from http.Header) {
	if !h.s.cfg.TraceUpstream {
		return
	}
	if v := from.Values(headerTrace); len(v) == 1 && validTrace(v[0]) {
		to[headerTrace] = v
	}
}

// validTrace tells whether s is a traceparent of version 00 by the grammar of W3C Trace Context,
// section 3.2.2: version, trace id, parent id and flags, neither id all zeros. Later versions may
// have more behind it, of which nothing is known.
func validTrace(s string) bool {
	if len(s) != 55 || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return false
	}
	return lowerHex(s[3:35], false) && lowerHex(s[36:52], false) && lowerHex(s[53:], true)
}

// lowerHex tells whether s is made of lower-case hexadecimal digits, and, unless zero is set, of
// other digits than 0.
func lowerHex(s string, zero bool) bool {
	for _, c := range []byte(s) {
		switch {
		case c == '0':
		case c >= '1' && c <= '9', c >= 'a' && c <= 'f':
			zero = true
		default:
			return false
		}
	}
	return zero
}
