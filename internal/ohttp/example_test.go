// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// example is SPEC.md's worked example of the second protocol: one recorded exchange, its values in
// hex. Message and Pieces are binary HTTP; each of the Pieces is a chunk, the last one the final
// chunk.
type example struct {
	Comment, Seed, KeyConfig, Fingerprint string
	Request                               struct{ Info, Message, Sealed, ID string }
	Answer                                struct {
		Secret, Nonce string
		Pieces        []string
		Sealed        string
	}
}

const exampleFile = "testdata/example.json"

func readExample(t testing.TB) (e example, of func(string) []byte) {
	t.Helper()
	text, err := os.ReadFile(exampleFile)
	if err == nil {
		err = json.Unmarshal(text, &e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e, func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// TestWriteExample records the exchange anew. The file is SPEC.md's, so it is for a change of the
// protocol only.
func TestWriteExample(t *testing.T) {
	if os.Getenv("SEALEDCHAT_WRITE_EXAMPLE") == "" {
		t.Skip("writes " + exampleFile + " with SEALEDCHAT_WRITE_EXAMPLE=1")
	}
	seed := sha256.Sum256([]byte("sealedchat: a testing key, not for use"))
	k, err := NewPrivateKey(1, XWing, seed[:])
	if err != nil {
		t.Fatal(err)
	}
	question := []byte(`{"model":"m","messages":[{"role":"user","content":"Hello"}],"stream":true}`)
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{Method: "POST", Scheme: "https",
		Authority: "api.example", Path: "/v1/chat/completions",
		Header: []bhttp.Field{{Name: "authorization", Value: "Bearer testing"},
			{Name: "content-type", Value: "application/json"},
			{Name: "date", Value: "Thu, 01 Jan 2026 00:00:00 GMT"}}}, question, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	sealed, q := seal(t, k.config, message)
	x, _, err := openRequest(sealed, one{k})
	if err != nil {
		t.Fatal(err)
	}
	var e bhttp.Encoder
	head, err := e.ResponseHead(nil, 200, []bhttp.Field{{Name: "content-type",
		Value: "text/event-stream"}})
	if err != nil {
		t.Fatal(err)
	}
	pieces := []string{string(head), string(e.Content(nil,
		[]byte("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n"))),
		string(e.Content(nil, []byte("data: [DONE]\n\n")))}
	end, err := e.End(nil, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	pieces = append(pieces, string(end))
	answer := sealAnswer(t, x, pieces...)
	id, fingerprint := x.ID(), k.config.Fingerprint()
	out := example{Comment: "SPEC.md's worked example of the second protocol. A testing key: " +
		"never use it.", Seed: hex.EncodeToString(seed[:]),
		KeyConfig:   hex.EncodeToString(k.config.encoded),
		Fingerprint: hex.EncodeToString(fingerprint[:])}
	out.Request.Info = hex.EncodeToString(chunked.info(k.config.header()))
	out.Request.Message, out.Request.Sealed, out.Request.ID = hex.EncodeToString(message),
		hex.EncodeToString(sealed), hex.EncodeToString(id[:])
	out.Answer.Secret, out.Answer.Nonce, out.Answer.Sealed = hex.EncodeToString(q.secret),
		hex.EncodeToString(answer[:32]), hex.EncodeToString(answer)
	for _, p := range pieces {
		out.Answer.Pieces = append(out.Answer.Pieces, hex.EncodeToString([]byte(p)))
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exampleFile, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// recorded returns the example's exchange: the client's half as it was after sealing, and the
// answer.
func recorded(t testing.TB) (q *Request, answer, plain []byte) {
	e, of := readExample(t)
	k, err := NewPrivateKey(1, XWing, of(e.Seed))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range e.Answer.Pieces {
		plain = append(plain, of(p)...)
	}
	return &Request{config: k.config, head: of(e.Request.Sealed)[:headerLen+1120],
		secret: of(e.Answer.Secret)}, of(e.Answer.Sealed), plain
}

// TestExample checks every value of the example.
func TestExample(t *testing.T) {
	e, of := readExample(t)
	k, err := NewPrivateKey(1, XWing, of(e.Seed))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "key configuration", k.config.encoded, of(e.KeyConfig))
	fingerprint := k.config.Fingerprint()
	same(t, "fingerprint", fingerprint[:], of(e.Fingerprint))
	same(t, "info", chunked.info(k.config.header()), of(e.Request.Info))
	x, message, err := openRequest(of(e.Request.Sealed), one{k})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "message", message, of(e.Request.Message))
	same(t, "secret", x.secret, of(e.Answer.Secret))
	id := x.ID()
	same(t, "ID", id[:], of(e.Request.ID))
	request, body, err := bhttp.ReadRequest(bytes.NewReader(message), bhttp.Limits{})
	if err != nil || request.Path != "/v1/chat/completions" {
		t.Fatal(request, err)
	}
	if content, err := body.ReadAll(); err != nil || !json.Valid(content) {
		t.Errorf("%q, %v", content, err)
	}

	a, err := newAnswer(aes256, x.secret, x.head[headerLen:], of(e.Answer.Nonce))
	if err != nil {
		t.Fatal(err)
	}
	sealed, left := of(e.Answer.Nonce), uint64(maxChunks)
	for i, p := range e.Answer.Pieces {
		if sealed, err = appendChunk(sealed, of(p), i == len(e.Answer.Pieces)-1, a.seal,
			&left); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "sealed answer", sealed, of(e.Answer.Sealed))

	q, answer, plain := recorded(t)
	if got, err := readAnswer(q, answer); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%q, %v", got, err)
	}
	r, _ := again(q).Response(bytes.NewReader(answer), 0)
	head, body, err := bhttp.ReadResponse(r, bhttp.Limits{})
	if err != nil || head.Status != 200 {
		t.Fatal(head, err)
	}
	if content, err := body.ReadAll(); err != nil ||
		!bytes.HasSuffix(content, []byte("data: [DONE]\n\n")) {
		t.Errorf("%q, %v", content, err)
	}
}

// TestExampleDamaged cuts the recorded answer at every byte and flips each of its bits, and reads
// what is left as binary HTTP: content that was handed out is a true beginning, and the end is
// never a good one.
func TestExampleDamaged(t *testing.T) {
	q, answer, plain := recorded(t)
	check := func(what string, at int, bad []byte) {
		t.Helper()
		got, err := readAnswer(q, bad)
		if err == nil || !bytes.HasPrefix(plain, got) {
			t.Fatalf("%s at %d: %q, %v", what, at, got, err)
		}
		r, _ := again(q).Response(bytes.NewReader(bad), 0)
		_, body, err := bhttp.ReadResponse(r, bhttp.Limits{})
		if err == nil {
			_, err = io.Copy(io.Discard, body)
		}
		if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrDecryption) &&
			!errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrEmptyChunk) &&
			err != bhttp.ErrTruncated {
			t.Fatalf("%s at %d, as HTTP: %v", what, at, err)
		}
	}
	for n := range len(answer) {
		check("cut", n, answer[:n])
	}
	for i := range len(answer) * 8 {
		bad := bytes.Clone(answer)
		bad[i/8] ^= 1 << (i % 8)
		check("bit flipped", i, bad)
	}
}
