// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 callers may still set the fields that net/http calls deprecated

package upstream

import (
	"context"
	"net"
	"net/http"
)

// replaceOldDials makes Dial and DialTLS what net/http takes them for: the contexts' dials where those are
// not set.
func replaceOldDials(t *http.Transport) {
	if dial := t.Dial; dial != nil && t.DialContext == nil {
		t.DialContext = func(_ context.Context, network, addr string) (net.Conn, error) {
			return dial(network, addr)
		}
	}
	if dial := t.DialTLS; dial != nil && t.DialTLSContext == nil {
		t.DialTLSContext = func(_ context.Context, network, addr string) (net.Conn, error) {
			return dial(network, addr)
		}
	}
	t.Dial, t.DialTLS = nil, nil
}
