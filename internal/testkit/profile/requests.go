// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

const window = 120

// The problem types.
const (
	unknownKey = "#ohttp-key"
	wrongDate  = "#date"
)

// The verdicts on a request.
func served(body []byte) Delivery { return Delivery{Body: body, Outer: 200, Inner: 200} }

func outside(status int, problem string, body []byte) Delivery {
	return Delivery{Body: body, Outer: status, Problem: problem}
}

func inside(status int, problem string, body []byte) Delivery {
	return Delivery{Body: body, Outer: 200, Inner: status, Problem: problem, Unprocessed: true}
}

// sentBefore does not say that the request was not processed.
func sentBefore(body []byte) Delivery { return Delivery{Body: body, Outer: 200, Inner: 409} }

func (d Delivery) at(seconds int64) Delivery {
	d.After = seconds
	return d
}

func at(seconds int64) string {
	return time.Unix(now+seconds, 0).UTC().Format(http.TimeFormat)
}

func makeRequests() Requests {
	r := Requests{Comment: comment, Now: now, Window: window,
		Keys: []Key{xwingKey(), x25519Key(), x25519BothKey()}}
	r.goodOnes()
	r.dates()
	r.replays()
	r.heads()
	r.chunks()
	r.messages()
	return r
}

func (r *Requests) add(name string, deliveries ...Delivery) {
	r.Cases = append(r.Cases, RequestCase{name, deliveries})
}

// sealed seals pieces to the key that offers AES-256-GCM alone.
func sealed(label string, pieces ...[]byte) Request {
	return sealRequest(x25519Key(), aes256, label, pieces...)
}

func (r *Requests) goodOnes() {
	r.add("in one chunk", served(sealed("one chunk", good()).Sealed))
	r.add("in three chunks and an empty one",
		served(sealed("three chunks", pieces(good(), 3)...).Sealed))
	r.add("with X-Wing", served(sealRequest(xwingKey(), aes256, "with X-Wing", good()).Sealed))
	r.add("with AES-128-GCM",
		served(sealRequest(x25519BothKey(), aes128, "with AES-128", good()).Sealed))
	r.add("with AES-256-GCM, where both are offered",
		served(sealRequest(x25519BothKey(), aes256, "of both", good()).Sealed))
	q := sealed("long lengths", pieces(good(), 1)...)
	c := q.Chunks[0].Sealed
	r.add("the length of a chunk in eight bytes", served(join(q.Header, q.Enc,
		binary.BigEndian.AppendUint64(nil, uint64(len(c))|0xc0<<56), c, q.Chunks[1].encode())))
	r.add("padded with zeros", served(sealed("padded",
		message("/v1/chat/completions", 256, dated(dateNow))).Sealed))
}

func (r *Requests) dates() {
	of := func(name string, header ...bhttp.Field) []byte {
		return sealed(name, message("/v1/chat/completions", 0, header...)).Sealed
	}
	for _, d := range []struct {
		name    string
		seconds int64
		ok      bool
	}{
		{"as old as it may be", -window, true}, {"as new as it may be", window, true},
		{"a second too old", -window - 1, false}, {"a second too new", window + 1, false},
		{"a year old", -365 * 86400, false},
	} {
		body := of(d.name, dated(at(d.seconds)))
		if d.ok {
			r.add("a date "+d.name, served(body))
		} else {
			r.add("a date "+d.name, inside(400, wrongDate, body))
		}
	}
	r.add("no date", inside(400, wrongDate, of("no date")))
	r.add("two dates", inside(400, wrongDate, of("two dates", dated(dateNow), dated(dateNow))))
	r.add("a date in another form", inside(400, wrongDate, of("ISO", dated("2000-01-01T00:00:00Z"))))
}

func (r *Requests) replays() {
	q := sealed("replayed", good()).Sealed
	r.add("twice", served(q), sentBefore(q))
	r.add("again at the end of the window", served(q), sentBefore(q).at(window))
	r.add("again after the window", served(q), inside(400, wrongDate, q).at(window+1))
	r.add("the same message, sealed twice", served(q), served(sealed("sealed again", good()).Sealed))
	three := sealed("cut, then whole", pieces(good(), 1)...)
	cut := encodeAll(join(three.Header, three.Enc), three.Chunks[:1])
	r.add("cut, then whole, then again", inside(400, "", cut), served(three.Sealed),
		sentBefore(three.Sealed))
	other := sealed("other chunks", pieces(good(), 2)...)
	mixed := encodeAll(join(other.Header, other.Enc), three.Chunks)
	r.add("the chunks of another request", served(three.Sealed), outside(422, unknownKey, mixed))
}

// heads has requests whose header or encapsulation is wrong.
func (r *Requests) heads() {
	q := sealed("head", good())
	set := func(i int, value byte) []byte {
		b := bytes.Clone(q.Sealed)
		b[i] = value
		return b
	}
	refused := func(name string, body []byte) { r.add(name, outside(422, unknownKey, body)) }
	refused("an unknown key id", set(0, 9))
	refused("the id of another key", set(0, 4))
	refused("an unknown KEM", set(1, 0x99))
	refused("X-Wing with the id of a key of X25519", join([]byte{3, 0x64, 0x7a}, q.Sealed[3:]))
	refused("another KDF", set(4, 2))
	refused("AES-128-GCM, which this key does not offer", set(6, 1))
	both := sealRequest(x25519BothKey(), aes256, "other AEAD", good()).Sealed
	both = bytes.Clone(both)
	both[6] = 1
	refused("sealed with AES-256-GCM, called AES-128-GCM", both)
	refused("ChaCha20Poly1305", set(6, 3))
	refused("a bit of enc", flip(q.Sealed, 7))
	refused("enc is zero", join(q.Header, make([]byte, 32), q.Sealed[39:]))
	xw := sealRequest(xwingKey(), aes256, "X-Wing head", good())
	refused("a bit of ML-KEM's half of enc", flip(xw.Sealed, 7))
	refused("a bit of X25519's half of enc", flip(xw.Sealed, 7+1088))
	for _, cut := range []struct {
		name string
		at   int
	}{{"nothing", 0}, {"cut in the header", 6}, {"cut after the header", 7}, {"cut in enc", 38},
		{"cut after enc", 39}} {
		r.add(cut.name, outside(400, "", q.Sealed[:cut.at]))
	}
}

// chunks has requests with chunks that are wrong.
func (r *Requests) chunks() {
	q := sealed("chunks", pieces(good(), 3)...)
	head := join(q.Header, q.Enc)
	c := q.Chunks
	with := func(chunks ...Chunk) []byte { return encodeAll(head, chunks) }
	first := len(head) + len(c[0].encode())
	empty := newSealer(q.HPKEKey, q.BaseNonce).seal(nil, false)
	asFinal := c[0]
	asFinal.Final = true
	asNext := c[3]
	asNext.Final = false
	unopened := func(name string, body []byte) { r.add(name, outside(422, unknownKey, body)) }
	unopened("the first chunk, called final", with(asFinal))
	unopened("the first two chunks changed places", with(c[1], c[0], c[2], c[3]))
	unopened("the first chunk left out", with(c[1:]...))
	unopened("a bit of the first chunk", flip(q.Sealed, first-1))
	one := sealed("cut final", good()).Sealed
	unopened("a byte of the only chunk is missing", one[:len(one)-1])
	unopened("a byte after the only chunk", join(one, []byte{0}))
	r.add("the mark of a final chunk alone", outside(400, "", join(head, []byte{0})))
	r.add("cut in the length of the first chunk", outside(400, "", q.Sealed[:len(head)+1]))
	r.add("cut in the first chunk", outside(400, "", q.Sealed[:first-1]))
	r.add("an empty chunk before the final one", outside(400, "", with(slices.Insert(
		slices.Clone(c), 0, empty)...)))
	r.add("a chunk of 20,000 bytes", outside(413, "", join(head,
		binary.BigEndian.AppendUint32(nil, 20000|0x80000000), make([]byte, 100))))
	// The header stands in the first two chunks, and all is sealed from there on.
	opened := func(name string, body []byte) { r.add(name, inside(400, "", body)) }
	opened("cut after the second chunk", with(c[:2]...))
	opened("cut in the third chunk", q.Sealed[:len(with(c[:3]...))-1])
	opened("without the final chunk", with(c[:3]...))
	opened("the final chunk, not called final", with(c[0], c[1], c[2], asNext))
	opened("a byte of the final chunk is missing", q.Sealed[:len(q.Sealed)-1])
	opened("a byte after the final chunk", join(q.Sealed, []byte{0}))
	opened("the last two chunks changed places", with(c[0], c[1], c[3], c[2]))
	opened("a chunk twice", with(c[0], c[1], c[1], c[2], c[3]))
	opened("the third chunk left out", with(c[0], c[1], c[3]))
	opened("a bit of the final chunk", flip(q.Sealed, -1))
}

// messages has requests that open, and are not to be served.
func (r *Requests) messages() {
	of := func(name string, message []byte) []byte { return sealed(name, message).Sealed }
	r.add("another path", inside(404, "", of("path", message("/v1/files", 0, dated(dateNow)))))
	r.add("a path in another spelling", inside(404, "",
		of("spelling", message("/v1/chat/%63ompletions", 0, dated(dateNow)))))
	r.add("a method that is not allowed", inside(405, "", of("method",
		must(bhttp.AppendRequest(nil, &bhttp.Request{Method: "PUT", Scheme: "https",
			Authority: "api.example", Path: "/v1/chat/completions",
			Header: []bhttp.Field{dated(dateNow)}}, nil, nil, 0)))))
	r.add("a content encoding", inside(400, "", of("encoding", message("/v1/chat/completions", 0,
		dated(dateNow), bhttp.Field{Name: "content-encoding", Value: "gzip"}))))
	r.add("no binary HTTP", inside(400, "", of("text", []byte("POST / HTTP/1.1\r\n\r\n"))))
	r.add("bytes behind the message", inside(400, "", of("behind", join(good(), []byte{1}))))
	r.add("a message that is cut", inside(400, "", of("cut", good()[:len(good())-10])))
}
