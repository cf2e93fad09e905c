// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

const comment = "Vectors of the profile in docs/spec-ohttp-profile.md, 11.10. Keys for testing: " +
	"never use them."

// now is the clock of the vectors: 1 January 2000, 00:00:00 UTC.
const now = 946684800

const dateNow = "Sat, 01 Jan 2000 00:00:00 GMT"

// message is a request for a chat completion, in binary HTTP.
func message(path string, pad int, header ...bhttp.Field) []byte {
	header = append([]bhttp.Field{{Name: "content-type", Value: "application/json"}}, header...)
	return must(bhttp.AppendRequest(nil, &bhttp.Request{Method: "POST", Scheme: "https",
		Authority: "api.example", Path: path, Header: header},
		[]byte(`{"model":"m","messages":[{"role":"user","content":"Hello"}]}`), nil, pad))
}

func dated(date string) bhttp.Field { return bhttp.Field{Name: "date", Value: date} }

// good is a message that every gateway takes.
func good() []byte { return message("/v1/chat/completions", 0, dated(dateNow)) }

// pieces cuts a message into n pieces, and an empty one behind them.
func pieces(message []byte, n int) [][]byte {
	size := (len(message) + n - 1) / n
	return append(slices.Collect(slices.Chunk(message, size)), nil)
}

// whole is an answer of known length, stream an event stream in four pieces.
func whole() [][]byte {
	return [][]byte{must(bhttp.AppendResponse(nil, &bhttp.Response{Status: 200,
		Header: []bhttp.Field{{Name: "content-type", Value: "application/json"}}},
		[]byte(`{"choices":[]}`), nil, 0))}
}

func stream() [][]byte {
	var e bhttp.Encoder
	return [][]byte{
		must(e.ResponseHead(nil, 200,
			[]bhttp.Field{{Name: "content-type", Value: "text/event-stream"}})),
		e.Content(nil, []byte("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":"+
			"\"Hi\"}}]}\n\n")),
		e.Content(nil, []byte("data: [DONE]\n\n")),
		must(e.End(nil, nil, 0)),
	}
}

// The keys of all files.
func xwingKey() Key      { return newKey(1, xwing, aes256) }
func xwingBothKey() Key  { return newKey(2, xwing, aes256, aes128) }
func x25519Key() Key     { return newKey(3, x25519, aes256) }
func x25519BothKey() Key { return newKey(4, x25519, aes256, aes128) }

func exchange(name string, k Key, aead uint16, request, answer [][]byte) Exchange {
	x := Exchange{Name: name, Key: k, AEAD: aead}
	x.Request = sealRequest(k, aead, name, request...)
	x.Answer = sealAnswer(k, aead, x.Request, name, answer...)
	return x
}

func makeExchanges() Exchanges {
	return Exchanges{comment, []Exchange{
		exchange("X-Wing, AES-256-GCM", xwingKey(), aes256, [][]byte{good()}, stream()),
		exchange("X-Wing, AES-128-GCM", xwingBothKey(), aes128, pieces(good(), 2), whole()),
		exchange("X25519, AES-256-GCM", x25519Key(), aes256, pieces(good(), 3), whole()),
		exchange("X25519, AES-128-GCM", x25519BothKey(), aes128, [][]byte{good()}, stream()),
	}}
}

// flip inverts the lowest bit of a byte; at below 0 counts from the end.
func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	return b
}

func makeAnswers() Answers {
	a := Answers{Comment: comment}
	all := makeExchanges().Exchanges
	for _, x := range []Exchange{all[0], all[3]} {
		other := exchange("another one with "+x.Name, x.Key, x.AEAD, [][]byte{good()}, stream())
		answer := x.Answer
		c := answer.Chunks
		n := len(answer.Nonce)
		with := func(chunks ...Chunk) []byte { return encodeAll(answer.Nonce, chunks) }
		asFinal := c[0]
		asFinal.Final = true
		asNext := c[3]
		asNext.Final = false
		empty := newSealer(answer.AEADKey, answer.BaseNonce).seal(nil, false)
		first := n + len(c[0].encode())
		add := func(name, verdict string, sealed []byte, opened int) {
			var plain []byte
			for _, o := range c[:opened] {
				plain = join(plain, o.Plain)
			}
			a.Cases = append(a.Cases, AnswerCase{name, x.Name, sealed, verdict, plain})
		}
		add("as it was sealed", Complete, answer.Sealed, 4)
		add("nothing", Truncated, nil, 0)
		add("cut in the nonce", Truncated, answer.Sealed[:n-1], 0)
		add("cut after the nonce", Truncated, answer.Sealed[:n], 0)
		add("cut after the length of the first chunk", Truncated, answer.Sealed[:n+1], 0)
		add("cut in the first chunk", Truncated, answer.Sealed[:first-1], 0)
		add("cut after the first chunk", Truncated, answer.Sealed[:first], 1)
		add("cut in the length of the second chunk", Truncated, answer.Sealed[:first+1], 1)
		add("without the final chunk", Truncated, with(c[0], c[1], c[2]), 3)
		add("the final chunk has no more than its mark", Truncated,
			join(with(c[0], c[1], c[2]), []byte{0}), 3)
		add("a byte of the final chunk is missing", Refused,
			answer.Sealed[:len(answer.Sealed)-1], 3)
		add("a byte after the final chunk", Refused, join(answer.Sealed, []byte{0}), 3)
		add("the first chunk, called final", Refused, with(asFinal), 0)
		add("the final chunk, not called final", Refused, with(c[0], c[1], c[2], asNext), 3)
		add("two chunks changed places", Refused, with(c[0], c[2], c[1], c[3]), 1)
		add("a chunk twice", Refused, with(c[0], c[1], c[1], c[2], c[3]), 2)
		add("a chunk left out", Refused, with(c[0], c[2], c[3]), 1)
		add("an empty chunk before the final one", Refused, with(empty, c[0], c[1], c[2], c[3]), 0)
		add("a bit of the nonce", Refused, flip(answer.Sealed, 0), 0)
		add("a bit of the first chunk", Refused, flip(answer.Sealed, first-1), 0)
		add("a bit of the final chunk", Refused, flip(answer.Sealed, -1), 3)
		add("the answer to another request", Refused, other.Answer.Sealed, 0)
	}
	return a
}
