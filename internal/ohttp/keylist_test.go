// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/ed25519"
	"strings"
	"testing"
	"time"
)

func TestListSignatures(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	list, now := []byte("a list"), time.Unix(1765250382, 0)
	good := SignList(key, list, now, now.Add(time.Hour))
	part := func(i int) string { return strings.Split(good, ", ")[i] }
	all := func(parts ...string) string { return strings.Join(parts, ", ") }
	k, c, e, s := part(0), part(1), part(2), part(3)
	for name, test := range map[string]struct {
		lines []string
		ok    bool
	}{
		"good":               {[]string{good}, true},
		"in another order":   {[]string{all(s, e, c, k)}, true},
		"with others":        {[]string{all(k, "new", "x=?1", c, e, s, "y=(1 2);z")}, true},
		"without spaces":     {[]string{strings.ReplaceAll(good, ", ", ",")}, true},
		"none":               {nil, false},
		"empty":              {[]string{""}, false},
		"twice":              {[]string{good, good}, false},
		"one missing":        {[]string{all(k, c, e)}, false},
		"one repeated":       {[]string{all(k, c, e, s, s)}, false},
		"a short key":        {[]string{all("key=:AAAA:", c, e, s)}, false},
		"a short signature":  {[]string{all(k, c, e, "sig=:AAAA:")}, false},
		"no colons":          {[]string{strings.ReplaceAll(good, ":", "")}, false},
		"a negative time":    {[]string{all(k, "created=-1", e, s)}, false},
		"a fraction":         {[]string{all(k, c+".0", e, s)}, false},
		"a long number":      {[]string{all(k, "created=1234567890123456", e, s)}, false},
		"parameters":         {[]string{all(k+";a", c, e, s)}, false},
		"another time":       {[]string{all(k, "created=1765250381", e, s)}, false},
		"another expiry":     {[]string{all(k, c, "expires=1765253983", s)}, false},
		"another key":        {[]string{all("key=:"+strings.Repeat("A", 43)+"=:", c, e, s)}, false},
		"too long":           {[]string{good + ", " + strings.Repeat("x", 1024)}, false},
		"base64 with spaces": {[]string{strings.Replace(good, "sig=:", "sig=: ", 1)}, false},
		"url alphabet": {[]string{all(k, c, e,
			strings.NewReplacer("+", "-", "/", "_").Replace(s)+"_")}, false},
	} {
		if by, _ := ListSigner(test.lines, list, now); (by != "") != test.ok {
			t.Errorf("%s: signer %q", name, by)
		}
	}
	h := []string{good}
	for _, test := range []struct {
		at time.Time
		ok bool
	}{
		{now.Add(-maxListLead), true}, {now.Add(-maxListLead - time.Second), false},
		{now.Add(time.Hour - time.Second), true}, {now.Add(time.Hour), false},
		{now.Add(maxListAge), false},
	} {
		if by, _ := ListSigner(h, list, test.at); (by != "") != test.ok {
			t.Errorf("at %v: %q", test.at.Sub(now), by)
		}
	}
	long := []string{SignList(key, list, now, now.Add(24*time.Hour))}
	if by, _ := ListSigner(long, list, now.Add(maxListAge)); by == "" {
		t.Error("two hours are too long")
	}
	if by, _ := ListSigner(long, list, now.Add(maxListAge+time.Second)); by != "" {
		t.Error("an old list counts for as long as its signer says")
	}
	if by, _ := ListSigner(h, []byte("b list"), now); by != "" {
		t.Error("vouches for another list")
	}
}

func FuzzListSignature(f *testing.F) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	f.Add(SignList(key, nil, time.Unix(1, 0), time.Unix(2, 0)))
	f.Add("key=:AA==:, created=1, expires=2, sig=::")
	f.Add("created, created=, key==, =")
	f.Fuzz(func(t *testing.T, text string) {
		s, ok := parseListSignature(text)
		if ok != (len(s.key) == ed25519.PublicKeySize && len(s.sig) == ed25519.SignatureSize) {
			t.Errorf("%v: %+v", ok, s)
		}
		if s.created < 0 || s.expires < 0 {
			t.Errorf("%+v", s)
		}
	})
}
