// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"encoding/base64"
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// MaxPEMSize is the size of the largest key file that the package reads, in bytes. An 8192-bit key
// takes 6,400.
const MaxPEMSize = 64 << 10

// Container names the form of a private key file.
type Container string

// The forms that the package reads.
const (
	PKCS8      Container = "PKCS#8"     // RFC 5208, unencrypted
	PKCS1      Container = "PKCS#1"     // RFC 8017, unencrypted
	PBES2      Container = "PBES2"      // PKCS#8 encrypted after RFC 8018
	JavaScript Container = "JavaScript" // the NOMYO JavaScript client's own encryption
)

// Report describes the file of a private key.
type Report struct {
	Container  Container
	KDF        string // "PBKDF2-HMAC-SHA256" and the like; "" if unencrypted
	Iterations int    // of the KDF; 0 if unencrypted
	Weak       bool   // encrypted with fewer than MinIterations
	Public     bool   // the file also has the public key that belongs to it
}

// limits bounds the work that a file may ask for. Fuzz tests lower it.
type limits struct{ maxIterations int }

// ParsePrivateKey reads the one RSA private key in a PEM file: PKCS#8, PKCS#1, PBES2 with PBKDF2
// and AES-CBC, or the encrypted form of the NOMYO JavaScript client. Text and public key blocks may
// stand around it. An empty passphrase means that there is none; any other is used byte for byte.
// The function neither changes nor keeps its arguments: the caller wipes both.
//
// It checks the key: 2048 to 8192 bits, an odd exponent from 65537 up to 31 bits, two primes,
// consistent numbers. The caller wipes the key. The errors are the sentinels of this package,
// *KeyTypeError and *UnsupportedError.
func ParsePrivateKey(pemBytes, passphrase []byte, options ...Option) (*RSAKey, *Report, error) {
	return parsePrivateKey(pemBytes, passphrase, limits{MaxIterations}, options...)
}

func parsePrivateKey(pemBytes, passphrase []byte, lim limits, options ...Option) (_ *RSAKey,
	_ *Report, err error) {
	private, public, err := splitBlocks(pemBytes)
	if err != nil {
		return nil, nil, err
	}
	if private == nil {
		return nil, nil, ErrPublicOnly
	}
	memory, err := locked.NewWith(policyOf(options), len(private.body))
	if err != nil {
		return nil, nil, err
	}
	var k *RSAKey
	var report *Report
	erase.Do(func() {
		var der []byte
		if der, err = private.decode(memory.Bytes()); err == nil {
			k, report, err = parseLabelled(private.label, der, passphrase, lim)
		}
	})
	if err != nil {
		memory.Destroy()
		return nil, nil, err
	}
	k.memory = memory
	defer wipeOnError(k, &err)
	if report.KDF == "" && len(passphrase) > 0 {
		return nil, nil, ErrPassphraseSuperfluous
	}
	erase.Do(func() { err = k.check() })
	if err != nil {
		return nil, nil, err
	}
	for _, b := range public {
		if err := k.checkPublicBlock(b); err != nil {
			return nil, nil, err
		}
	}
	report.Public = len(public) > 0
	report.Weak = report.KDF != "" && report.Iterations < MinIterations
	return k, report, nil
}

const (
	labelPKCS8     = "PRIVATE KEY"
	labelEncrypted = "ENCRYPTED PRIVATE KEY"
	labelPKCS1     = "RSA PRIVATE KEY"
	labelSPKI      = "PUBLIC KEY"
	labelPKCS1Pub  = "RSA PUBLIC KEY"
)

// block is a PEM block whose body is still base64. The body is a span of the file.
type block struct {
	label string
	body  []byte
}

// splitBlocks finds the private key block, if there is one, and the public ones. Without an error
// there is at least one block.
func splitBlocks(file []byte) (private *block, public []block, err error) {
	if len(file) > MaxPEMSize {
		return nil, nil, fmt.Errorf("%w: a key file of more than %d bytes", ErrTooLarge, MaxPEMSize)
	}
	blocks, err := scanPEM(file)
	if err != nil {
		return nil, nil, err
	}
	for i, b := range blocks {
		switch b.label {
		case labelSPKI, labelPKCS1Pub:
			public = append(public, b)
		case labelPKCS8, labelEncrypted, labelPKCS1:
			if private != nil {
				return nil, nil, ErrMultipleKeys
			}
			private = &blocks[i]
		case "EC PRIVATE KEY", "EC PARAMETERS":
			return nil, nil, &KeyTypeError{"EC"}
		case "DSA PRIVATE KEY", "DSA PARAMETERS":
			return nil, nil, &KeyTypeError{"DSA"}
		case "OPENSSH PRIVATE KEY":
			return nil, nil, &UnsupportedError{"OpenSSH's key format",
				"ssh-keygen -p -m PKCS8 -f key.pem (a copy: it is changed in place)"}
		case "CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE", "CERTIFICATE REQUEST", "X509 CRL":
			return nil, nil, fmt.Errorf("%w: a %s block: give the private key alone, with: "+
				"openssl pkey -in old.pem -out new.pem", ErrLabel, b.label)
		default:
			return nil, nil, fmt.Errorf("%w: neither a private nor a public key block", ErrLabel)
		}
	}
	return private, public, nil
}

// scanPEM finds the blocks of a PEM file (RFC 7468) and skips the text around them. It copies only
// the labels. It ignores white space at the ends of lines and a byte order mark.
func scanPEM(file []byte) ([]block, error) {
	var blocks []block
	rest := bytes.TrimPrefix(file, []byte("\xef\xbb\xbf"))
	for len(rest) > 0 {
		var line []byte
		line, rest = cutLine(rest)
		label, ok := boundary(line, "-----BEGIN ")
		if !ok {
			continue
		}
		body := rest
		for {
			if len(rest) == 0 {
				return nil, fmt.Errorf("%w: the END line is missing", ErrMalformed)
			}
			before := len(rest)
			line, rest = cutLine(rest)
			if !bytes.HasPrefix(line, []byte("-----")) {
				continue
			}
			if end, ok := boundary(line, "-----END "); !ok || !bytes.Equal(end, label) {
				return nil, fmt.Errorf("%w: the END line does not fit", ErrMalformed)
			}
			body = body[:len(body)-before]
			break
		}
		blocks = append(blocks, block{string(label), body})
	}
	if len(blocks) == 0 {
		for _, mark := range []string{"\xff\xfe", "\xfe\xff"} {
			if bytes.HasPrefix(file, []byte(mark)) {
				return nil, fmt.Errorf("%w: it is UTF-16 text: save it as UTF-8", ErrNotPEM)
			}
		}
		return nil, ErrNotPEM
	}
	return blocks, nil
}

// cutLine returns the first line without white space at its end, and the lines after it.
func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte("\n"))
	return bytes.TrimRight(line, " \t\r"), rest
}

// boundary returns the label of a line that begins or ends a block.
func boundary(line []byte, prefix string) (label []byte, ok bool) {
	label, ok = bytes.CutPrefix(line, []byte(prefix))
	if !ok {
		return nil, false
	}
	return bytes.CutSuffix(label, []byte("-----"))
}

// decode decodes the base64 into buf, which is as long as the body. The caller clears buf.
func (b block) decode(buf []byte) ([]byte, error) {
	if bytes.HasPrefix(bytes.TrimLeft(b.body, " \t\r\n"), []byte("Proc-Type:")) {
		return nil, &UnsupportedError{"legacy PEM encryption (Proc-Type, DEK-Info)", convertCommand}
	}
	buf = buf[:0]
	for _, c := range b.body {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			buf = append(buf, c)
		}
	}
	// In place, so that no second buffer holds the key: three bytes never overtake four.
	n, err := base64.StdEncoding.Strict().Decode(buf, buf)
	if err != nil {
		clear(buf)
		return nil, fmt.Errorf("%w: invalid base64", ErrMalformed)
	}
	clear(buf[n:])
	return buf[:n], nil
}
