// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	"github.com/seed-017344ad/sealedchat"
)

// made is when test chains are made, and today when tests judge them.
var (
	made  = time.Date(2026, 5, 25, 0, 0, 0, 0, time.UTC)
	today = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
)

// measured is what the test guest was measured to be.
func measured() Measurement {
	m := Measurement{MRTD: bytes.Repeat([]byte{0x42}, 48)}
	for i := range m.RTMRs {
		m.RTMRs[i] = bytes.Repeat([]byte{byte(0x10 + i)}, 48)
	}
	return m
}

const (
	testFMSPC  = "50806f000000"
	testPCESVN = 11
)

var (
	qeSigner = bytes.Repeat([]byte{0xdc}, 32)
	cpuSVN   = bytes.Repeat([]byte{5}, 16)
)

// signer is a certificate with its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// chain is a provisioning service, a platform and its quoting enclave below a root that only tests
// trust. Tests change its fields before they ask for documents.
type chain struct {
	root, ca, pck, tcbSigner *signer
	attestKey                *ecdsa.PrivateKey

	issued, until time.Time             // of everything that has dates, except certificates
	statuses      []string              // the platform's, the module's and the enclave's
	revokedByRoot []*x509.Certificate   // in the root's revocation list
	revokedByCA   []*x509.Certificate   // in the CA's
	tcb           func(s string) string // changes TCB info before it is signed
	qe            func(s string) string // changes QE identity before it is signed
}

func newChain(tb testing.TB) *chain {
	tb.Helper()
	return chainOf(tb, made)
}

func chainOf(tb testing.TB, made time.Time) *chain {
	tb.Helper()
	c := &chain{
		issued:   made,
		until:    made.AddDate(0, 1, 0),
		statuses: []string{"UpToDate", "UpToDate", "UpToDate"},
	}
	c.root = newSigner(tb, made, "Intel SGX Root CA", nil, nil)
	c.ca = newSigner(tb, made, "Intel SGX PCK Platform CA", c.root, nil)
	c.tcbSigner = newSigner(tb, made, "Intel SGX TCB Signing", c.root, nil)
	c.pck = newSigner(tb, made, "Intel SGX PCK Certificate", c.ca, sgxExtension(tb))
	c.attestKey = newKey(tb)
	return c
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newSigner(tb testing.TB, made time.Time, name string, parent *signer, sgx []byte) *signer {
	tb.Helper()
	s := &signer{key: newKey(tb)}
	id := make([]byte, 8)
	_, _ = rand.Read(id)
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id),
		Subject: pkix.Name{CommonName: name, Organization: []string{"Intel Corporation"},
			Locality: []string{"Santa Clara"}, Province: []string{"CA"}, Country: []string{"US"}},
		NotBefore: made.AddDate(-1, 0, 0), NotAfter: made.AddDate(9, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		CRLDistributionPoints: []string{
			"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
		},
		SubjectKeyId: id, SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
	switch {
	case strings.HasSuffix(name, " CA"):
		t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	case sgx != nil:
		t.ExtraExtensions = []pkix.Extension{{Id: pcs.OidSgxExtension, Value: sgx}}
	}
	if parent == nil {
		parent = &signer{t, s.key}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent.cert, s.key.Public(), parent.key)
	if err == nil {
		s.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// sgxExtension is what a PCK certificate says of its platform.
func sgxExtension(tb testing.TB) []byte {
	tb.Helper()
	marshal := func(v any) asn1.RawValue {
		der, err := asn1.Marshal(v)
		if err != nil {
			tb.Fatal(err)
		}
		return asn1.RawValue{FullBytes: der}
	}
	type octets struct {
		ID    asn1.ObjectIdentifier
		Value []byte
	}
	type number struct {
		ID    asn1.ObjectIdentifier
		Value int
	}
	type list struct {
		ID    asn1.ObjectIdentifier
		Value []asn1.RawValue
	}
	var tcb []asn1.RawValue
	for i, v := range cpuSVN {
		tcb = append(tcb,
			marshal(number{append(append(asn1.ObjectIdentifier{}, pcs.OidTCB...), i+1), int(v)}))
	}
	tcb = append(tcb, marshal(number{pcs.OidPCESvn, testPCESVN}),
		marshal(octets{pcs.OidCPUSvn, cpuSVN}))
	fmspc, err := hex.DecodeString(testFMSPC)
	if err != nil {
		tb.Fatal(err)
	}
	return marshal([]asn1.RawValue{
		marshal(octets{pcs.OidPPID, make([]byte, 16)}),
		marshal(list{pcs.OidTCB, tcb}),
		marshal(octets{pcs.OidPCEID, make([]byte, 2)}),
		marshal(octets{pcs.OidFMSPC, fmspc}),
	}).FullBytes
}

// sign is an ECDSA signature as quotes and Intel's JSON have it: r and s, 32 bytes each.
func sign(tb testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	tb.Helper()
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		tb.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

func (c *chain) verifier(tb testing.TB, p Policy) *Verifier {
	tb.Helper()
	v, err := New(p)
	if err != nil {
		tb.Fatal(err)
	}
	v.root = c.root.cert
	return v
}

func trusting() Policy { return Policy{Measurements: []Measurement{measured()}} }

// at are the places of a quote's parts that tests change, in a body of either size.
const (
	atSVN, atSeamSigner, atAttributes, atMRTD, atRTMRs, atData = 0, 64, 120, 136, 328, 520
	atServiceTD                                                = 600
)

// quote is a quote of version 4 or 5 over data, of the test guest, changed by change, which gets
// the body.
func (c *chain) quote(tb testing.TB, version uint16, data [64]byte,
	change func(body []byte)) []byte {
	tb.Helper()
	head := make([]byte, headerSize)
	binary.LittleEndian.PutUint16(head, version)
	binary.LittleEndian.PutUint16(head[2:], 2)
	binary.LittleEndian.PutUint32(head[4:], 0x81)
	copy(
		head[12:],
		[]byte{
			0x93,
			0x9a,
			0x72,
			0x33,
			0xf7,
			0x9c,
			0x4c,
			0xa9,
			0x94,
			0x0a,
			0x0d,
			0xb3,
			0x95,
			0x7f,
			0x06,
			0x07,
		},
	)
	size := bodySize10
	if version == 5 {
		size = bodySize15
		head = binary.LittleEndian.AppendUint16(head, 3)
		head = binary.LittleEndian.AppendUint32(head, uint32(size))
	}
	body := make([]byte, size)
	copy(body[atSVN:], []byte{6, 1, 5}) // module 1.6
	body[atAttributes+3] = 0x10         // SEPT_VE_DISABLE
	m := measured()
	copy(body[atMRTD:], m.MRTD)
	for i, r := range m.RTMRs {
		copy(body[atRTMRs+48*i:], r)
	}
	copy(body[atData:], data[:])
	if change != nil {
		change(body)
	}
	signed := append(head, body...)
	auth := c.authData(tb, signed, nil)
	signed = binary.LittleEndian.AppendUint32(signed, uint32(len(auth)))
	return append(signed, auth...)
}

// authData is what stands behind a quote's body: the signature, the key, and why the key is good.
func (c *chain) authData(tb testing.TB, signed []byte, change func(qeReport []byte)) []byte {
	tb.Helper()
	public, err := c.attestKey.PublicKey.Bytes()
	if err != nil {
		tb.Fatal(err)
	}
	public = public[1:]
	qeAuth := []byte("auth")
	report := make([]byte, 384)
	report[48] = 0x11 // attributes
	copy(report[128:], qeSigner)
	binary.LittleEndian.PutUint16(report[256:], 2) // ISV product
	binary.LittleEndian.PutUint16(report[258:], 4) // ISV SVN
	digest := sha256.Sum256(append(bytes.Clone(public), qeAuth...))
	copy(report[320:], digest[:])
	if change != nil {
		change(report)
	}
	inner := append(bytes.Clone(report), sign(tb, c.pck.key, report)...)
	inner = binary.LittleEndian.AppendUint16(inner, uint16(len(qeAuth)))
	inner = append(inner, qeAuth...)
	certs := toPEM(c.pck, c.ca, c.root)
	inner = binary.LittleEndian.AppendUint16(inner, 5)
	inner = binary.LittleEndian.AppendUint32(inner, uint32(len(certs)))
	inner = append(inner, certs...)

	auth := append(sign(tb, c.attestKey, signed), public...)
	auth = binary.LittleEndian.AppendUint16(auth, 6)
	auth = binary.LittleEndian.AppendUint32(auth, uint32(len(inner)))
	return append(auth, inner...)
}

func toPEM(signers ...*signer) []byte {
	var text []byte
	for _, s := range signers {
		text = append(
			text,
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})...)
	}
	return text
}

// endorsements are the collateral of the test platform.
func (c *chain) endorsements(tb testing.TB) [][]byte {
	tb.Helper()
	signing := toPEM(c.tcbSigner, c.root)
	return [][]byte{
		c.tcbInfo(tb), signing,
		c.qeIdentity(tb), signing,
		c.crl(tb, c.ca, c.revokedByCA), toPEM(c.ca, c.root),
		c.crl(tb, c.root, c.revokedByRoot),
	}
}

// signedJSON is Intel's form of a signed value.
func (c *chain) signedJSON(tb testing.TB, name, value string) []byte {
	tb.Helper()
	return fmt.Appendf(nil, `{"%s":%s,"signature":"%x"}`, name, value,
		sign(tb, c.tcbSigner.key, []byte(value)))
}

func (c *chain) dates() string {
	return fmt.Sprintf(`"issueDate":%q,"nextUpdate":%q`, c.issued.Format(time.RFC3339),
		c.until.Format(time.RFC3339))
}

const tcbDate = `"tcbDate":"2026-01-01T00:00:00Z"`

func (c *chain) tcbInfo(tb testing.TB) []byte {
	tb.Helper()
	components := func(svn ...byte) string {
		parts := make([]string, 16)
		for i := range parts {
			v := byte(0)
			if i < len(svn) {
				v = svn[i]
			}
			parts[i] = fmt.Sprintf(`{"svn":%d}`, v)
		}
		return "[" + strings.Join(parts, ",") + "]"
	}
	module := fmt.Sprintf(`"mrsigner":"%s","attributes":"%s","attributesMask":"FFFFFFFFFFFFFFFF"`,
		strings.Repeat("0", 96), strings.Repeat("0", 16))
	value := fmt.Sprintf(`{"id":"TDX","version":3,%s,"fmspc":"%s","pceId":"0000","tcbType":0,`+
		`"tcbEvaluationDataNumber":17,"tdxModule":{%s},"tdxModuleIdentities":[`+
		`{"id":"TDX_01",%s,"tcbLevels":[{"tcb":{"isvsvn":6},%s,"tcbStatus":"%s"}]}],`+
		`"tcbLevels":[{"tcb":{"sgxtcbcomponents":%s,"pcesvn":11,"tdxtcbcomponents":%s},%s,`+
		`"tcbStatus":"%s"}]}`,
		c.dates(), testFMSPC, module, module, tcbDate, c.statuses[1], components(5, 5, 2, 2),
		components(5, 0, 5), tcbDate, c.statuses[0])
	if c.tcb != nil {
		value = c.tcb(value)
	}
	return c.signedJSON(tb, "tcbInfo", value)
}

func (c *chain) qeIdentity(tb testing.TB) []byte {
	tb.Helper()
	value := fmt.Sprintf(`{"id":"TD_QE","version":2,%s,"tcbEvaluationDataNumber":17,`+
		`"miscselect":"00000000","miscselectMask":"FFFFFFFF",`+
		`"attributes":"11000000000000000000000000000000",`+
		`"attributesMask":"FBFFFFFFFFFFFFFF0000000000000000","mrsigner":"%X","isvprodid":2,`+
		`"tcbLevels":[{"tcb":{"isvsvn":4},%s,"tcbStatus":"%s"}]}`, c.dates(), qeSigner, tcbDate,
		c.statuses[2])
	if c.qe != nil {
		value = c.qe(value)
	}
	return c.signedJSON(tb, "enclaveIdentity", value)
}

func (c *chain) crl(tb testing.TB, by *signer, revoked []*x509.Certificate) []byte {
	tb.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: c.issued, NextUpdate: c.until}
	for _, cert := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: c.issued})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, by.cert, by.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// document is one that the policy trusting trusts.
func (c *chain) document(tb testing.TB, data [64]byte) sealedchat.AttestationDocument {
	tb.Helper()
	return sealedchat.AttestationDocument{
		Format: Format, Evidence: c.quote(tb, 4, data, nil), Endorsements: c.endorsements(tb),
	}
}
