// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	memoryRounds     = 20
	memoryPromptSize = 1500 // characters
)

// memoryProcess is a child of TestProcessMemoryChild, and the pipes to it.
type memoryProcess struct {
	t       testing.TB
	cmd     *exec.Cmd
	control *os.File
	reports *bufio.Reader
}

func startMemoryProcess(t testing.TB, role string, env ...string) *memoryProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	controlOut, controlIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reportOut, reportIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestProcessMemoryChild$", "-test.v=false", "-test.count=1", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), memoryRoleVar+"="+role)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{controlOut, reportIn}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	controlOut.Close()
	reportIn.Close()
	t.Cleanup(func() {
		controlIn.Close()
		reportOut.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &memoryProcess{t, cmd, controlIn, bufio.NewReader(reportOut)}
}

// tell sends a command with its secrets, and returns what the process answers.
func (p *memoryProcess) tell(command string, secrets ...[]byte) string {
	p.t.Helper()
	p.send([]byte(command + "\n"))
	for _, s := range secrets {
		p.sendSecret(s)
	}
	return p.answer(command)
}

func (p *memoryProcess) sendSecret(s []byte) {
	p.t.Helper()
	p.send(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
	p.send(s)
}

func (p *memoryProcess) send(b []byte) {
	p.t.Helper()
	if _, err := p.control.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *memoryProcess) answer(command string) string {
	p.t.Helper()
	line, err := p.reports.ReadString('\n')
	said, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "ok ")
	if err != nil || !ok {
		p.t.Fatalf("%s: the process says %q, %v", command, line, err)
	}
	return said
}

// memoryRun is a client process that has something to hide, and all that a reader of its memory could look for.
type memoryRun struct {
	*memoryProcess
	witness        *testkit.Witness
	client, server *rsa.PrivateKey
	apiKey         []byte
	fixed          []testkit.MemorySecret // those that do not depend on what was sent
	prompts        []string
}

func randomText(n int) []byte {
	b := make([]byte, n/2)
	_, _ = rand.Read(b)
	return []byte(hex.EncodeToString(b))
}

// startMemoryRun starts a gateway, and a client with a key store on disk.
func startMemoryRun(t testing.TB, protocol string) *memoryRun {
	t.Helper()
	gateway := startMemoryProcess(t, "gateway")
	gateway.sendSecret(testkit.KeyPEM(t, "server-4096"))
	addr, pin, _ := strings.Cut(gateway.answer("gateway"), " ")

	r := &memoryRun{
		witness: testkit.NewWitness(t, addr), apiKey: randomText(48),
		client: testkit.Key(t, "client-4096"), server: testkit.Key(t, "server-4096"),
	}
	dir, passphrase := filepath.Join(t.TempDir(), "store"), randomText(40)
	file := writeKeyStore(t, dir, passphrase, r.client)
	r.fixed = append(storeSecrets(t, file, passphrase, r.client), keySecrets("client's", r.client)...)
	r.fixed = append(r.fixed, testkit.MemorySecret{Row: rowAPIKey, Name: "API key", Bytes: r.apiKey})

	r.memoryProcess = startMemoryProcess(t, "client")
	r.tell(strings.Join([]string{"open", dir, "http://" + r.witness.Addr(), pin, protocol}, " "), passphrase, r.apiKey)
	return r
}

// writeKeyStore makes a store with this key.
func writeKeyStore(t testing.TB, dir string, passphrase []byte, key *rsa.PrivateKey) (file []byte) {
	t.Helper()
	master, err := keyfile.NewMasterKey(passphrase, 0)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := keyfile.NewRSAKey(key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	dataKey := make([]byte, 32)
	_, _ = rand.Read(dataKey)
	file, err = keyfile.Seal(&keyfile.Body{
		Generation: 1,
		Keys:       []keyfile.Entry{{State: keyfile.Primary, Created: now, Activated: now, Key: copied}},
		DataKeys:   []keyfile.DataKey{{Generation: 1, Key: dataKey, Created: now}},
	}, master)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "keystore.json"), file, 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

func (r *memoryRun) round() {
	prompt := randomText(memoryPromptSize)
	r.prompts = append(r.prompts, string(prompt))
	r.tell("round", fmt.Appendf(nil, `{"model":"test-model","messages":[{"role":"user","content":"%s"}]}`, prompt))
}

func (r *memoryRun) secrets() []testkit.MemorySecret {
	all := slices.Clone(r.fixed)
	return append(all, v1Secrets(r.t, exchanges(r.t, r.witness), r.client, r.server)...)
}

// scan reads the client's memory. The test is skipped where that is not allowed.
func (r *memoryRun) scan(s *testkit.SecretSearch) *testkit.ProcessScan {
	r.t.Helper()
	scan, err := testkit.ScanProcess(r.cmd.Process.Pid, s)
	if errors.Is(err, fs.ErrPermission) {
		r.t.Skipf("this process may not read the memory of its children: %v", err)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return scan
}

// memoryCount counts hits: full copies and fragments.
type memoryCount struct{ full, fragments int }

func (c memoryCount) String() string { return fmt.Sprintf("%d+%d", c.full, c.fragments) }

func (c memoryCount) total() int { return c.full + c.fragments }

// memoryCounts is a column of the table.
type memoryCounts struct {
	name             string
	unlocked, locked map[string]memoryCount
	heap             string
	scan             *testkit.ProcessScan
}

func (r *memoryRun) count(name string, s *testkit.SecretSearch) *memoryCounts {
	c := &memoryCounts{name: name, unlocked: make(map[string]memoryCount), locked: make(map[string]memoryCount)}
	c.heap = r.tell("idle")
	c.scan = r.scan(s)
	for _, h := range c.scan.Hits {
		in := c.unlocked
		if h.Region.Locked {
			in = c.locked
		}
		n := in[rowOf(h)]
		if h.Full() {
			n.full++
		} else {
			n.fragments++
		}
		in[rowOf(h)] = n
	}
	return c
}

func memoryTable(columns []*memoryCounts) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-38s", "unlocked (locked)")
	for _, c := range columns {
		fmt.Fprintf(&b, " | %-18s", c.name)
	}
	for _, row := range memoryRows {
		fmt.Fprintf(&b, "\n%-38s", row)
		for _, c := range columns {
			fmt.Fprintf(&b, " | %-18s", fmt.Sprintf("%s (%s)", c.unlocked[row], c.locked[row]))
		}
	}
	fmt.Fprintf(&b, "\n%-38s", "MB searched, KB locked")
	for _, c := range columns {
		fmt.Fprintf(&b, " | %-18s", fmt.Sprintf("%.1f, %d", float64(c.scan.Read)/(1<<20), c.scan.Locked>>10))
	}
	fmt.Fprintf(&b, "\n%-38s", "heap in use, collections")
	for _, c := range columns {
		fmt.Fprintf(&b, " | %-18s", c.heap)
	}
	return b.String()
}

func TestProcessMemory(t *testing.T) {
	r := startMemoryRun(t, "v1")
	r.tell("warm")
	fixed := testkit.NewSecretSearch(r.fixed)
	columns := []*memoryCounts{r.count("loaded", fixed)}
	for range memoryRounds {
		r.round()
	}
	s := testkit.NewSecretSearch(r.secrets())
	columns = append(columns, r.count("idle", s))
	r.tell("gc")
	columns = append(columns, r.count("after a GC", s))
	r.tell("scrub")
	columns = append(columns, r.count("scrubbed", s))
	r.tell("close")
	columns = append(columns, r.count("closed", s))
	r.tell("scrub")
	columns = append(columns, r.count("closed, scrubbed", s))
	t.Logf("\n%s", memoryTable(columns))
	if file := os.Getenv("SEALEDCHAT_MEMORY_HITS"); file != "" {
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, c := range columns {
			for _, h := range c.scan.Hits {
				_, _ = io.WriteString(f, fmt.Sprintln(c.name, h.Region.Locked, h))
			}
		}
	}
}
