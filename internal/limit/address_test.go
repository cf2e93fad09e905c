// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"net/http"
	"strings"
	"testing"
)

func TestAddressInHeader(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "10.0.0.1, 192.0.2.1": "192.0.2.1",
		"10.0.0.1\n192.0.2.2 , 192.0.2.1 ": "192.0.2.1",
		"192.0.2.1:99":                     "192.0.2.1", "2001:db8::1": "2001:db8::/64",
		"[2001:db8::1]:99": "2001:db8::/64",
		"[2001:db8::1]":    "2001:db8::/64", "192.0.2.9, [2001:db8:0:1::1]": "2001:db8:0:1::/64",
		"[::ffff:192.0.2.1]": "192.0.2.1",
		"[2001:db8::1%eth0]": "2001:db8::/64", "::ffff:192.0.2.1": "192.0.2.1",
		"": "203.0.113.7", "unknown": "203.0.113.7", "192.0.2.1,": "203.0.113.7",
		"192.0.2.1, _hidden": "203.0.113.7",
		"[2001:db8::1":       "203.0.113.7", "2001:db8::1]": "203.0.113.7",
		"[[2001:db8::1]]": "203.0.113.7", "[]": "203.0.113.7",
		"2001:db8::/32": "203.0.113.7", "[_hidden]:1": "203.0.113.7",
	} {
		r := &http.Request{RemoteAddr: "203.0.113.7:1",
			Header: http.Header{"X-Forwarded-For": strings.Split(in, "\n")}}
		if got := Address(r, "x-forwarded-for"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if got := Address(r, ""); got != "203.0.113.7" {
			t.Errorf("%q: without a header's name: %q", in, got)
		}
	}
	if got := Address(&http.Request{RemoteAddr: "203.0.113.7:1"},
		"X-Real-Ip"); got != "203.0.113.7" {
		t.Errorf("no header: %q", got)
	}
}

func TestRemoteAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::/64",
		"[::ffff:192.0.2.1]:80": "192.0.2.1",
		"[fe80::1%eth0]:80":     "fe80::/64", "@": "@", "pipe:x": "pipe", "tenant-7": "tenant-7",
		"": "",
	} {
		if got := Address(&http.Request{RemoteAddr: in}, ""); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestWider(t *testing.T) {
	for in, want := range map[string]string{
		"2001:db8:1:2::/64": "2001:db8:1::/48", "2001:db8:1:2::3": "2001:db8:1::/48",
		"2001:db8::/48": "", "2001::/16": "",
		"192.0.2.1": "", "192.0.2.0/24": "", "::ffff:192.0.2.1": "", "fe80::1%eth0": "fe80::/48",
		"tenant-7": "", "": "",
	} {
		if got := wider(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
