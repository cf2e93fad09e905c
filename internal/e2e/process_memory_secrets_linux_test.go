// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// What TestProcessMemory looks for: the secrets themselves, and values that give them away to
// whoever has recorded the traffic. The rows of its table.
const (
	rowPassphrase = "passphrase, derived keys, data keys"
	rowKeyFile    = "key file contents"
	rowKey        = "p, q, d, dP, dQ, qInv"
	rowSession    = "AES session keys"
	rowContent    = "prompt and response"
	rowWidened    = "q, widened for each use"
	rowResidue    = "c mod p, m mod p, h*q"
	rowOAEP       = "OAEP block"
	rowAPIKey     = "API key"
)

var memoryRows = []string{rowPassphrase, rowKeyFile, rowKey, rowSession, rowContent, rowWidened,
	rowResidue, rowOAEP, rowAPIKey}

// hmacSecrets are the forms in which HMAC-SHA256 keeps a key: xored with its pads, and as the
// states of SHA-256 after those, which serve as well as the key.
func hmacSecrets(row, name string, key []byte) (all []testkit.MemorySecret) {
	for pad, padName := range map[byte]string{0x36: "inner", 0x5c: "outer"} {
		block := bytes.Repeat([]byte{pad}, sha256.BlockSize)
		for i := range key {
			block[i] ^= key[i]
		}
		h := sha256.New()
		h.Write(block)
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			panic(err)
		}
		state = state[4 : 4+sha256.Size] // after the magic
		words := make([]byte, len(state))
		for i := 0; i < len(state); i += 4 {
			binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(state[i:]))
		}
		all = append(all,
			testkit.MemorySecret{Row: row, Name: name + " under HMAC's " + padName + " pad",
				Bytes: block[:len(key)]},
			testkit.MemorySecret{Row: row, Name: name + " as HMAC's " + padName + " state",
				Bytes: state},
			testkit.MemorySecret{Row: row, Name: name + " as HMAC's " + padName + " state, words",
				Bytes: words})
	}
	return all
}

func unlockFile(t testing.TB, file, passphrase []byte) (*keyfile.File, *keyfile.MasterKey,
	*keyfile.Body) {
	t.Helper()
	f, err := keyfile.ParseHeader(file)
	if err != nil {
		t.Fatal(err)
	}
	master, err := f.Unlock(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	body, err := keyfile.Open(f, master)
	if err != nil {
		t.Fatal(err)
	}
	return f, master, body
}

// storeSecrets are those of a key store's file: what the passphrase becomes, the data keys, the
// private key, and the file's body that holds them.
func storeSecrets(t testing.TB, file, passphrase []byte,
	key *rsa.PrivateKey) []testkit.MemorySecret {
	t.Helper()
	f, master, body := unlockFile(t, file, passphrase)
	masterKey := make([]byte, 32)
	if err := master.MoveTo(masterKey); err != nil {
		t.Fatal(err)
	}
	all := []testkit.MemorySecret{
		{Row: rowPassphrase, Name: "passphrase", Bytes: passphrase},
		{Row: rowPassphrase, Name: "PBKDF2's result", Bytes: masterKey},
	}
	all = append(all, hmacSecrets(rowPassphrase, "passphrase", passphrase)...)
	prk, err := hkdf.Extract(sha256.New, masterKey, f.BodySalt[:])
	if err != nil {
		t.Fatal(err)
	}
	bodyKey, err := hkdf.Expand(sha256.New, prk, "sealedchat keystore v1 body", 32)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, testkit.MemorySecret{Row: rowPassphrase, Name: "HKDF's extract", Bytes: prk})
	all = append(all, hmacSecrets(rowPassphrase, "HKDF's extract", prk)...)
	all = append(all, aesSecrets(rowPassphrase, "the body's key", bodyKey)...)
	opened := openBody(t, file, bodyKey)
	files := keyFileSecrets(t, opened, key)
	for _, k := range body.DataKeys {
		all = append(all, testkit.MemorySecret{Row: rowPassphrase,
			Name: fmt.Sprint("data key ", k.Generation), Bytes: k.Key})
		at := bytes.Index(opened, k.Key)
		files[0].Parts = append(files[0].Parts, [2]int{at, at + len(k.Key)})
	}
	return append(all, files...)
}

// openBody decrypts a store's body, which is the last member of its JSON.
func openBody(t testing.TB, file, key []byte) []byte {
	t.Helper()
	const member = `"body": "`
	at := bytes.Index(file, []byte(member)) + len(member)
	end := at + bytes.IndexByte(file[at:], '"')
	sealed, err := base64.StdEncoding.DecodeString(string(file[at:end]))
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	body, err := gcm.Open(nil, nil, sealed, file[:at])
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// fileSecret is a file's content. Marked are all that stands before d, which is public, and the
// integers, which are counted by themselves.
func fileSecret(t testing.TB, name string, content []byte,
	key *rsa.PrivateKey) testkit.MemorySecret {
	t.Helper()
	s := testkit.MemorySecret{Row: rowKeyFile, Name: name, Bytes: content}
	pre := &key.Precomputed
	for i, n := range []*big.Int{key.D, key.Primes[0], key.Primes[1], pre.Dp, pre.Dq, pre.Qinv} {
		at := bytes.Index(content, n.Bytes())
		if at < 0 {
			t.Fatalf("%s does not hold the key", name)
		}
		if i == 0 {
			s.Parts = append(s.Parts, [2]int{0, at})
		}
		s.Parts = append(s.Parts, [2]int{at, at + len(n.Bytes())})
	}
	return s
}

// pemSecret is a PEM file's content without what is public: the lines around it, and the base64 of
// what stands before d.
func pemSecret(text, der []byte, key *rsa.PrivateKey) testkit.MemorySecret {
	const lineSize, perLine = 65, 48 // with the end of the line; bytes of DER
	head := bytes.IndexByte(text, '\n') + 1
	foot := bytes.LastIndex(text, []byte("-----END"))
	d := bytes.Index(der, key.D.Bytes())
	from := head + (d/perLine+1)*lineSize
	return testkit.MemorySecret{Row: rowKeyFile, Name: "PEM", Bytes: text[from:foot]}
}

// keyFileSecrets are the key as it lies in files: the body of a key store, DER and PEM.
func keyFileSecrets(t testing.TB, body []byte, key *rsa.PrivateKey) []testkit.MemorySecret {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return []testkit.MemorySecret{
		fileSecret(t, "the store's body", body, key), fileSecret(t, "DER", der, key),
		pemSecret(text, der, key),
	}
}

// aesSecrets are an AES key and its schedule, as crypto/aes keeps it.
func aesSecrets(row, name string, key []byte) []testkit.MemorySecret {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	v := reflect.ValueOf(block)
	schedule := bytes.Clone(unsafe.Slice((*byte)(v.UnsafePointer()), v.Type().Elem().Size()))
	all := []testkit.MemorySecret{{Row: row, Name: name, Bytes: key}}
	// The round keys to encrypt, which begin with the key, and those to decrypt. The last of the
	// one are the first of the other.
	const half = 15 * aes.BlockSize
	at := bytes.Index(schedule, key)
	if at < 0 || len(schedule) < at+2*half {
		return all // TestMemorySecrets tells
	}
	return append(all,
		testkit.MemorySecret{Row: row, Name: name + " expanded",
			Bytes: schedule[at+len(key) : at+half-aes.BlockSize]},
		testkit.MemorySecret{Row: row, Name: name + " expanded to decrypt",
			Bytes: schedule[at+half+aes.BlockSize : at+2*half-aes.BlockSize]},
	)
}

func integer(row, name string, n *big.Int) testkit.MemorySecret {
	return testkit.MemorySecret{Row: row, Name: name, Bytes: n.Bytes(), Integer: true}
}

// montgomery is R for numbers as long as n: 2^(64·words).
func montgomery(n *big.Int) *big.Int {
	return new(big.Int).Lsh(big.NewInt(1), uint((n.BitLen()+63)/64*64))
}

// keySecrets are the integers of a private key, and what Montgomery's arithmetic adds to them.
func keySecrets(name string, key *rsa.PrivateKey) (all []testkit.MemorySecret) {
	pre := &key.Precomputed
	for label, n := range map[string]*big.Int{
		"d": key.D, "p": key.Primes[0], "q": key.Primes[1], "dP": pre.Dp, "dQ": pre.Dq,
		"qInv": pre.Qinv,
	} {
		all = append(all, integer(rowKey, name+" "+label, n))
	}
	for i, label := range []string{"R² mod p", "R² mod q"} {
		p := key.Primes[i]
		r := montgomery(p)
		all = append(all, integer(rowKey, name+" "+label, r.Mul(r, r).Mod(r, p)))
	}
	return all
}

// oaepBlock is what was wrapped for key.
func oaepBlock(key *rsa.PrivateKey, wrapped []byte) *big.Int {
	c, pre := new(big.Int).SetBytes(wrapped), &key.Precomputed
	p, q := key.Primes[0], key.Primes[1]
	m, m2 := new(big.Int).Exp(c, pre.Dp, p), new(big.Int).Exp(c, pre.Dq, q)
	m.Sub(m, m2).Mul(m, pre.Qinv).Mod(m, p)
	return m.Mul(m, q).Add(m, m2)
}

// oaepSecrets are the block and its seed. The unmasked rest is zeros around the session key; see
// session.
func oaepSecrets(name string, block []byte) []testkit.MemorySecret {
	seed := bytes.Clone(block[1 : 1+sha256.Size])
	// MGF1 of one block
	mask := sha256.Sum256(append(bytes.Clone(block[1+sha256.Size:]), 0, 0, 0, 0))
	for i := range seed {
		seed[i] ^= mask[i]
	}
	return []testkit.MemorySecret{
		{Row: rowOAEP, Name: name + " block", Bytes: block[1:], Integer: true},
		{Row: rowOAEP, Name: name + " seed", Bytes: seed},
	}
}

// residues are what RSA's Chinese remainders pass through. With the ciphertext, each gives away p
// or q.
func residues(name string, key *rsa.PrivateKey, wrapped []byte,
	m *big.Int) (all []testkit.MemorySecret) {
	c := new(big.Int).SetBytes(wrapped)
	add := func(label string, n *big.Int) {
		all = append(all, integer(rowResidue, name+" "+label, n))
	}
	for i, p := range key.Primes {
		prime := string("pq"[i])
		cp := new(big.Int).Mod(c, p)
		add("c mod "+prime, cp)
		add("m mod "+prime, new(big.Int).Mod(m, p))
		r := montgomery(p)
		power := r.Mod(r, p)
		for k := 1; k < 16; k++ { // the window of the exponentiation
			power = new(big.Int).Mod(new(big.Int).Mul(power, cp), p)
			add(fmt.Sprintf("c^%d·R mod %s", k, prime), power)
		}
	}
	q := key.Primes[1]
	hq := new(big.Int).Sub(m, new(big.Int).Mod(m, q))
	add("h·q", hq)
	add("h", new(big.Int).Div(hq, q))
	return all
}

// exchange is a request and its answer, as they crossed the wire.
type exchange struct {
	path              string
	request, response []byte
}

// exchanges reads back what a witness has recorded of HTTP/1.
func exchanges(t testing.TB, w *testkit.Witness) []exchange {
	t.Helper()
	var all []exchange
	r := bufio.NewReader(bytes.NewReader(w.Bytes()))
	answered := 0
	for {
		start, err := r.Peek(5)
		if err != nil {
			break
		}
		var body io.ReadCloser
		isRequest := string(start) != "HTTP/"
		if isRequest {
			req, err := http.ReadRequest(r)
			if err != nil {
				t.Fatal(err)
			}
			all, body = append(all, exchange{path: req.URL.Path}), req.Body
		} else {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusOK || answered >= len(all) {
				t.Fatalf("the wire shows: %s", resp.Status)
			}
			body = resp.Body
		}
		content, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		if isRequest {
			all[len(all)-1].request = content
		} else {
			all[answered].response = content
			answered++
		}
	}
	if answered != len(all) {
		t.Fatalf("%d requests and %d answers on the wire", len(all), answered)
	}
	return all
}

// v1Secrets opens what crossed the wire, with the keys of both ends.
func v1Secrets(t testing.TB, wire []exchange, client,
	server *rsa.PrivateKey) (all []testkit.MemorySecret) {
	t.Helper()
	open := func(name string, key *rsa.PrivateKey, b []byte) []byte {
		e, err := envelope.Parse(b, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		m := oaepBlock(key, e.WrappedKey)
		dataKey, err := rsa.DecryptOAEP(sha256.New(), nil, key, e.WrappedKey, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, oaepSecrets(name, m.FillBytes(make([]byte, key.Size())))...)
		all = append(all, aesSecrets(rowSession, name+" key", dataKey)...)
		if key == client { // the other end alone does arithmetic with its own
			all = append(all, residues(name, key, e.WrappedKey, m)...)
		}
		cb, err := aes.NewCipher(dataKey)
		if err != nil {
			t.Fatal(err)
		}
		gcm, err := cipher.NewGCM(cb)
		if err != nil {
			t.Fatal(err)
		}
		plaintext, err := gcm.Open(nil, e.Sealed[:12], e.Sealed[12:], nil)
		if err != nil {
			t.Fatal(err)
		}
		return plaintext
	}
	n := 0
	for _, x := range wire {
		if !strings.HasSuffix(x.path, "/secure_completion") {
			continue
		}
		n++
		name := fmt.Sprint("request ", n)
		var request struct{ Messages []struct{ Content string } }
		if err := json.Unmarshal(open(name, server, x.request), &request); err != nil {
			t.Fatal(err)
		}
		all = append(all, testkit.MemorySecret{Row: rowContent, Name: name,
			Bytes: []byte(request.Messages[0].Content)})
		name = fmt.Sprint("response ", n)
		var response struct {
			Choices []struct{ Message struct{ Content string } }
		}
		if err := json.Unmarshal(open(name, client, x.response), &response); err != nil {
			t.Fatal(err)
		}
		all = append(all, testkit.MemorySecret{Row: rowContent, Name: name,
			Bytes: []byte(response.Choices[0].Message.Content)})
	}
	return all
}

// rowOf is what a hit counts under. A session key inside an unmasked OAEP block counts as that, and
// q in front of as many zeros as one of the copies that crypto/rsa makes, as long as the modulus,
// whenever it opens something.
func rowOf(h testkit.MemoryHit) string {
	padding := append(make([]byte, 16), 1)
	zeros := make([]byte, 64)
	switch {
	case h.Secret.Row == rowSession && h.Offset == 0 && bytes.HasSuffix(h.Before, padding):
		return rowOAEP
	case h.Secret.Row == rowKey && strings.HasSuffix(h.Secret.Name, " q") && h.Reversed &&
		bytes.Equal(h.After, zeros):
		return rowWidened
	}
	return h.Secret.Row
}
