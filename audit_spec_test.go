// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/auditlog"
)

// TestSpecAuditLog checks SPEC.md's example of an audit log: with nothing but the standard library,
// then with the code.
func TestSpecAuditLog(t *testing.T) {
	var values struct {
		DataKey  string `json:"data_key"`
		MACKey   string `json:"mac_key"`
		Fragment string `json:"fragment"`
		Head     string `json:"head"`
	}
	if err := json.Unmarshal(specFile(t, "audit.values.json"), &values); err != nil {
		t.Fatal(err)
	}
	dataKey, err := hex.DecodeString(values.DataKey)
	if err != nil {
		t.Fatal(err)
	}
	macKey, err := hkdf.Key(sha256.New, dataKey, nil, "\x00\x17sealedchat audit log v1", 32)
	if err != nil || hex.EncodeToString(macKey) != values.MACKey {
		t.Fatalf("the key is %x, %v", macKey, err)
	}
	text := specFile(t, "audit.log")
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != 4 || lines[2] != values.Fragment {
		t.Fatalf("%d lines", len(lines))
	}
	prev, seq := strings.Repeat("0", 64), 0
	for i, line := range lines {
		if i == 2 {
			continue // the unfinished one
		}
		seq++
		head, mac, ok := strings.Cut(strings.TrimSuffix(line, `"}`), `,"mac":"`)
		code := hmac.New(sha256.New, macKey)
		code.Write([]byte(head))
		if !ok || hex.EncodeToString(code.Sum(nil)) != mac {
			t.Errorf("line %d: the code is %x", i+1, code.Sum(nil))
		}
		if !strings.HasPrefix(line, `{"seq":`+strconv.Itoa(seq)+`,"key":1,"prev":"`+prev+`",`) {
			t.Errorf("line %d begins %.120s", i+1, line)
		}
		prev = mac
	}
	sum := sha256.Sum256([]byte(values.Fragment))
	if want := `,"torn":` + strconv.Itoa(len(values.Fragment)) + `,"torn_sha256":"` + hex.EncodeToString(sum[:]) + `","lost":2,`; !strings.Contains(lines[3], want) {
		t.Errorf("%s has no %s", lines[3], want)
	}
	if values.Head != "3-"+prev {
		t.Errorf("the head is 3-%s", prev)
	}

	key, err := auditlog.NewKey(dataKey)
	if err != nil {
		t.Fatal(err)
	}
	if made := specAuditLog(t, key); !bytes.Equal(made, text) {
		t.Errorf("written again it is\n%s", made)
	}
	head, err := auditlog.ParseHead(values.Head)
	if err != nil {
		t.Fatal(err)
	}
	chain := &auditlog.Chain{Key: func(uint32) (*auditlog.Key, error) { return key, nil }, Want: head}
	for i, line := range lines {
		if err := chain.Step("audit.log", i+1, []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if err := chain.Finish("audit.log", 5, nil); err != nil || !chain.WantFound || chain.Torn != 1 ||
		chain.Lost != 2 {
		t.Errorf("%v, %+v", err, chain)
	}
}

// specAuditLog makes the example.
func specAuditLog(t *testing.T, key *auditlog.Key) (text []byte) {
	t.Helper()
	at := auditlog.Head{}
	add := func(e Event, l auditlog.Line) {
		e.User, e.PID, e.Severity = "alice", 4711, slog.LevelInfo
		var err error
		if l.Event, err = e.fields(); err != nil {
			t.Fatal(err)
		}
		l.Seq, l.Prev, l.Generation = at.Seq+1, at.MAC, 1
		text = key.Append(text, &l)
		at = l.Head()
	}
	time := func(s string) (e Event) {
		if err := e.Time.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := time("2026-01-02T03:04:05.123456789Z")
	e.Type, e.PayloadID, e.Bytes, e.Tier = EventRequestSealed, "0b7c2c60-4f1e-4f7a-9d55-3a6f1c7e8d21", 1024, TierStandard
	e.Fingerprint = publicOf(t, "server-4096").fingerprint
	add(e, auditlog.Line{})
	e = time("2026-01-02T03:04:06Z")
	e.Type, e.Details = EventNote, map[string]any{"ticket": 42, "session_token": "eyJhbGciOi"}
	add(e, auditlog.Line{})
	fragment := `{"seq":3,"key":1,"prev":"`
	text = append(text, fragment+"\n"...)
	e = time("2026-01-02T03:10:00Z")
	e.Type, e.Reason = EventSchemaRefused, "malformed envelope"
	add(e, auditlog.Line{Torn: uint64(len(fragment)), TornSum: sha256.Sum256([]byte(fragment)),
		Lost: 2})
	return text
}
