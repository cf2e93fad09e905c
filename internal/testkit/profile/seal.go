// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/binary"
)

// This file seals, from the specification: RFC 9180 (HPKE, mode base), draft-ietf-hpke-pq
// (MLKEM768-X25519), RFC 9458 and the profile.

const (
	xwing  = 0x647a
	x25519 = 0x0020
	sha    = 0x0001 // HKDF-SHA256
	aes128 = 0x0001
	aes256 = 0x0002

	requestLabel = "message/bhttp chunked request"
	answerLabel  = "message/bhttp chunked response"
)

// must is for what cannot fail with the values here.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// derive is n bytes that look random, and follow from a label.
func derive(label string, n int) []byte {
	return sha3.SumSHAKE256([]byte("sealedchat, vectors of the ohttp profile: "+label), n)
}

func u16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// scalar is a private key of X25519 in its one form.
func scalar(label string) []byte {
	s := derive(label, 32)
	s[0] &= 248
	s[31] = s[31]&127 | 64
	return s
}

// newKey is a gateway's key.
func newKey(id uint8, kem uint16, aeads ...uint16) Key {
	k := Key{ID: id, KEM: kem, AEADs: aeads, Seed: scalar("a gateway's key")}
	if kem == xwing {
		k.Seed = derive("a gateway's key", 32)
		pq, t := expand(k.Seed)
		k.Public = join(pq.EncapsulationKey().Bytes(), t.PublicKey().Bytes())
	} else {
		k.Public = must(ecdh.X25519().NewPrivateKey(k.Seed)).PublicKey().Bytes()
	}
	var algorithms []byte
	for _, a := range aeads {
		algorithms = join(algorithms, u16(sha), u16(a))
	}
	k.Config = join([]byte{id}, u16(kem), k.Public, u16(uint16(len(algorithms))), algorithms)
	sum := sha256.Sum256(k.Config)
	k.Fingerprint = sum[:]
	return k
}

// expand makes the two keys of X-Wing of its seed.
func expand(seed []byte) (*mlkem.DecapsulationKey768, *ecdh.PrivateKey) {
	long := sha3.SumSHAKE256(seed, 96)
	return must(mlkem.NewDecapsulationKey768(long[:64])),
		must(ecdh.X25519().NewPrivateKey(long[64:]))
}

// encapsulate makes a shared secret for a key.
func encapsulate(k Key, randomness []byte) (enc, secret []byte) {
	ephemeral := must(ecdh.X25519().NewPrivateKey(randomness[len(randomness)-32:]))
	own := ephemeral.PublicKey().Bytes()
	peer := k.Public[len(k.Public)-32:]
	dh := must(ephemeral.ECDH(must(ecdh.X25519().NewPublicKey(peer))))
	if k.KEM == x25519 {
		return own, dhkem(dh, own, peer)
	}
	pq := must(mlkem.NewEncapsulationKey768(k.Public[:len(k.Public)-32]))
	shared, ciphertext, err := mlkemtest.Encapsulate768(pq, randomness[:32])
	if err != nil {
		panic(err)
	}
	sum := sha3.Sum256(join(shared, dh, own, peer, []byte(xwingLabel)))
	return join(ciphertext, own), sum[:]
}

const xwingLabel = `\.//^\`

// dhkem is ExtractAndExpand of RFC 9180, section 4.1.
func dhkem(dh, enc, public []byte) []byte {
	suite := join([]byte("KEM"), u16(x25519))
	prk := labeledExtract(suite, nil, "eae_prk", dh)
	return labeledExpand(suite, prk, "shared_secret", join(enc, public), 32)
}

func labeledExtract(suite, salt []byte, label string, key []byte) []byte {
	return must(hkdf.Extract(sha256.New, join([]byte("HPKE-v1"), suite, []byte(label), key), salt))
}

func labeledExpand(suite, prk []byte, label string, info []byte, n int) []byte {
	return must(hkdf.Expand(sha256.New, prk, string(join(u16(uint16(n)), []byte("HPKE-v1"), suite,
		[]byte(label), info)), n))
}

// keySize is Nk.
func keySize(aead uint16) int {
	if aead == aes128 {
		return 16
	}
	return 32
}

// sealer seals the chunks of one message.
type sealer struct {
	gcm   cipher.AEAD
	base  []byte
	count uint64
}

func newSealer(key, base []byte) *sealer {
	return &sealer{gcm: must(cipher.NewGCM(must(aes.NewCipher(key)))), base: base}
}

func (s *sealer) seal(plain []byte, final bool) Chunk {
	nonce := s.next()
	return Chunk{Plain: plain, Final: final, Nonce: nonce,
		Sealed: s.gcm.Seal(nil, nonce, plain, aad(final))}
}

func (s *sealer) open(sealed []byte, final bool) ([]byte, error) {
	return s.gcm.Open(nil, s.next(), sealed, aad(final))
}

func (s *sealer) next() []byte {
	nonce := join(s.base)
	tail := nonce[len(nonce)-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^s.count)
	s.count++
	return nonce
}

func aad(final bool) []byte {
	if final {
		return []byte("final")
	}
	return nil
}

// encode is a chunk on the wire.
func (c Chunk) encode() []byte {
	n := len(c.Sealed)
	switch {
	case c.Final:
		return join([]byte{0}, c.Sealed)
	case n < 1<<6:
		return join([]byte{byte(n)}, c.Sealed)
	case n < 1<<14:
		return join(u16(uint16(n)|0x4000), c.Sealed)
	}
	return join(binary.BigEndian.AppendUint32(nil, uint32(n)|0x80000000), c.Sealed)
}

func encodeAll(head []byte, chunks []Chunk) []byte {
	all := join(head)
	for _, c := range chunks {
		all = join(all, c.encode())
	}
	return all
}

// sealPieces seals pieces, the last one as the final chunk.
func sealPieces(s *sealer, pieces [][]byte) (chunks []Chunk) {
	for i, p := range pieces {
		chunks = append(chunks, s.seal(p, i == len(pieces)-1))
	}
	return chunks
}

// schedule sets up the request's context. It fills in all before the message.
func schedule(k Key, aead uint16, label string) (q Request) {
	q.Randomness = scalar(label + ", ephemeral key")
	if k.KEM == xwing {
		q.Randomness = join(derive(label+", randomness of ML-KEM", 32), q.Randomness)
	}
	q.Enc, q.SharedSecret = encapsulate(k, q.Randomness)
	q.expand(k, aead)
	return q
}

// expand is the schedule of keys behind the shared secret (RFC 9180, section 5.1).
func (q *Request) expand(k Key, aead uint16) {
	q.Header = join([]byte{k.ID}, u16(k.KEM), u16(sha), u16(aead))
	q.Info = join([]byte(requestLabel), []byte{0}, q.Header)
	suite := suiteOf(k, aead)
	context := join([]byte{0}, labeledExtract(suite, nil, "psk_id_hash", nil),
		labeledExtract(suite, nil, "info_hash", q.Info))
	secret := labeledExtract(suite, q.SharedSecret, "secret", nil)
	q.HPKEKey = labeledExpand(suite, secret, "key", context, keySize(aead))
	q.BaseNonce = labeledExpand(suite, secret, "base_nonce", context, 12)
	q.Exporter = labeledExpand(suite, secret, "exp", context, 32)
}

func suiteOf(k Key, aead uint16) []byte {
	return join([]byte("HPKE"), u16(k.KEM), u16(sha), u16(aead))
}

// sealRequest seals the pieces of a message to a key.
func sealRequest(k Key, aead uint16, label string, pieces ...[]byte) Request {
	q := schedule(k, aead, label)
	q.Message = join(pieces...)
	q.Chunks = sealPieces(newSealer(q.HPKEKey, q.BaseNonce), pieces)
	head := join(q.Header, q.Enc)
	q.Sealed = encodeAll(head, q.Chunks)
	id := sha256.Sum256(head)
	q.ID = id[:]
	return q
}

// schedule derives the keys of an answer (RFC 9458, section 4.4).
func (a *Answer) schedule(k Key, aead uint16, q Request, nonce []byte) {
	n := keySize(aead)
	a.Nonce = nonce
	a.Secret = labeledExpand(suiteOf(k, aead), q.Exporter, "sec", []byte(answerLabel), n)
	a.PRK = must(hkdf.Extract(sha256.New, a.Secret, join(q.Enc, a.Nonce)))
	a.AEADKey = must(hkdf.Expand(sha256.New, a.PRK, "key", n))
	a.BaseNonce = must(hkdf.Expand(sha256.New, a.PRK, "nonce", 12))
}

// sealAnswer seals the pieces of the answer to a request.
func sealAnswer(k Key, aead uint16, q Request, label string, pieces ...[]byte) (a Answer) {
	a.schedule(k, aead, q, derive(label+", nonce of the answer", keySize(aead)))
	a.Message = join(pieces...)
	a.Chunks = sealPieces(newSealer(a.AEADKey, a.BaseNonce), pieces)
	a.Sealed = encodeAll(a.Nonce, a.Chunks)
	return a
}
