// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	memoryVar        = "SEALEDCHAT_MEMORY" // "full": all scenarios, and core files
	memoryRounds     = 20                  // with "full"; otherwise a quarter
	memoryPromptSize = 1500                // characters
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
	// It ends when this process closes the pipe, not after a time: a busy machine may need any.
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestProcessMemoryChild$",
		"-test.v=false", "-test.count=1", "-test.timeout=0")
	cmd.Env = append(os.Environ(), memoryRoleVar+"="+role)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	cmd.Dir = t.TempDir() // where a core file would go
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

// memoryRun is a client process that has something to hide, and all that a reader of its memory
// could look for.
type memoryRun struct {
	*memoryProcess
	witness        *testkit.Witness
	client, server *rsa.PrivateKey
	apiKey         []byte
	fixed          []testkit.MemorySecret // those that do not depend on what was sent
	prompts        []string
	protocol       string
}

func randomText(n int) []byte {
	b := make([]byte, n/2)
	_, _ = rand.Read(b)
	return []byte(hex.EncodeToString(b))
}

// startMemoryRun starts a gateway, and a client with a key store on disk.
func startMemoryRun(t testing.TB, s memoryScenario) *memoryRun {
	t.Helper()
	gateway := startMemoryProcess(t, "gateway")
	gateway.sendSecret(testkit.KeyPEM(t, "server-4096"))
	said := strings.Fields(gateway.answer("gateway"))
	addr, pin := said[0], said[1]
	if s.protocol == "ohttp" {
		pin = said[2]
	}

	r := &memoryRun{
		witness: testkit.NewWitness(t, addr), apiKey: randomText(48),
		client: testkit.Key(t, "client-4096"), server: testkit.Key(t, "server-4096"), protocol: s.protocol,
	}
	dir, passphrase := filepath.Join(t.TempDir(), "store"), randomText(40)
	stored := r.client
	if s.pem {
		stored = testkit.Key(t, "other-4096") // retired as soon as the other comes
	}
	file := writeKeyStore(t, dir, passphrase, stored)
	r.fixed = append(storeSecrets(t, file, passphrase, stored), keySecrets("the key's", stored)...)
	r.fixed = append(r.fixed, testkit.MemorySecret{Row: rowAPIKey, Name: "API key", Bytes: r.apiKey})

	r.memoryProcess = startMemoryProcess(t, "client")
	r.tell(strings.Join([]string{"open", dir, "http://" + r.witness.Addr(), pin, s.protocol}, " "), passphrase, r.apiKey)
	if s.pem {
		r.tell("import", testkit.KeyPEM(t, "client-4096"))
		if file, err := os.ReadFile(filepath.Join(dir, "keystore.json")); err != nil {
			t.Fatal(err)
		} else {
			r.fixed = append(r.fixed, storeSecrets(t, file, passphrase, r.client)...)
		}
		r.fixed = append(r.fixed, keySecrets("the imported key's", r.client)...)
	}
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

// round has the client make a round, with the command "round" or "deep".
func (r *memoryRun) round(command string) {
	prompt := randomText(memoryPromptSize)
	r.prompts = append(r.prompts, string(prompt))
	r.tell(command, fmt.Appendf(nil, `{"model":"test-model","messages":[{"role":"user","content":"%s"}]}`, prompt))
}

func (r *memoryRun) secrets() []testkit.MemorySecret {
	all := slices.Clone(r.fixed)
	if r.protocol == "ohttp" { // its keys are the gateway's and the exchange's own: nobody here can know them
		for _, prompt := range r.prompts {
			all = append(all,
				testkit.MemorySecret{Row: rowContent, Name: "prompt", Bytes: []byte(prompt)},
				testkit.MemorySecret{Row: rowContent, Name: "answer", Bytes: memoryAnswer(prompt)})
		}
		return all
	}
	return append(all, v1Secrets(r.t, exchanges(r.t, r.witness), r.client, r.server)...)
}

// scan reads the client's memory. The test is skipped where that is not allowed.
func (r *memoryRun) scan(s *testkit.SecretSearch) *testkit.ProcessScan {
	r.t.Helper()
	scan, err := testkit.ScanProcess(r.cmd.Process.Pid, s)
	if errors.Is(err, fs.ErrPermission) {
		if os.Getenv(memoryVar) == "full" {
			r.t.Fatalf("this process may not read the memory of its children: %v", err)
		}
		r.t.Skipf("this process may not read the memory of its children: %v", err)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return scan
}

// column counts what lies in the client's memory now.
func (r *memoryRun) column(name string, s *testkit.SecretSearch) *memoryCounts {
	r.t.Helper()
	heap := r.tell("idle")
	c := countMemory(name, r.scan(s))
	c.heap = heap
	return c
}

// runs is how often the test is repeated.
func memoryRuns(t testing.TB) int {
	t.Helper()
	text := os.Getenv("SEALEDCHAT_MEMORY_RUNS")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("SEALEDCHAT_MEMORY_RUNS=%s is not a number of runs", text)
	}
	return n
}

// memoryScenario is what else happens in the client's process, and what is asked of it.
type memoryScenario struct {
	name     string
	protocol string
	before   string // a command before the rounds
	pem      bool   // the key comes from a PEM file, and not with the store
	asserted bool
	control  bool
}

// TestProcessMemory has a client make 5 rounds with a gateway, and reads its memory from outside:
// what lies there of its secrets, when it is idle and after Close? It prints a table, and fails
// where more is found than memoryTargets allows. At the end it leaves every kind of secret lying
// about, and must find each.
//
// SEALEDCHAT_MEMORY=full makes 20 rounds, and adds garbage collections and allocations all the
// while, and a large heap. SEALEDCHAT_MEMORY_RUNS=10 repeats everything;
// SEALEDCHAT_MEMORY_HITS=folder gets the address of every hit.
func TestProcessMemory(t *testing.T) {
	testkit.NeedLocked(t, 1<<20)
	if underRace {
		t.Skip("what is measured is the ordinary build")
	}
	scenarios := []memoryScenario{
		{name: "rounds", protocol: "v1", asserted: true, control: true},
		{name: "rounds over OHTTP", protocol: "ohttp", asserted: true},
	}
	if os.Getenv(memoryVar) == "full" {
		scenarios = append(scenarios,
			memoryScenario{name: "collections beside", protocol: "v1", before: "storm", asserted: true},
			memoryScenario{name: "OHTTP and collections", protocol: "ohttp", before: "storm", asserted: true},
			memoryScenario{name: "allocations beside", protocol: "v1", before: "churn", asserted: true},
			memoryScenario{name: "imported key", protocol: "v1", pem: true, asserted: true},
			memoryScenario{name: "fragmented heap", protocol: "v1", before: "fragment"},
		)
	}
	for run := range memoryRuns(t) {
		for _, s := range scenarios {
			t.Run(fmt.Sprintf("%s %d", s.name, run+1), s.run)
		}
	}
}

// TestProcessMemoryOfLargeStacks has a client make each round on a goroutine whose stack was large
// before, with a collection meanwhile, and looks for session keys and content after each.
func TestProcessMemoryOfLargeStacks(t *testing.T) {
	if underRace {
		t.Skip("what is measured is the ordinary build")
	}
	r := startMemoryRun(t, memoryScenario{protocol: "v1"})
	r.tell("warm")
	for n, kib := range largeStacks() {
		r.round("deep " + strconv.Itoa(kib))
		if runtimeSecret {
			r.tell("gc")
		}
		c := r.column(fmt.Sprintf("round %d, %d KiB", n+1, kib), testkit.NewSecretSearch(r.secrets()))
		for _, row := range []string{rowSession, rowContent} {
			if found := c.unlocked[row]; found.total() > 0 {
				t.Errorf("%s: %s of %q, want none%s", c.name, found, row, c.listing(row))
			}
		}
	}
}

// largeStacks are how many KiB of the stack were in use before each round.
func largeStacks() []int {
	all := []int{200, 400, 1000}
	if os.Getenv(memoryVar) == "full" {
		all = slices.Concat([]int{0, 60, 100}, slices.Repeat(all, 3))
	}
	return all
}

func (s memoryScenario) run(t *testing.T) {
	if runtimeSecret {
		s.inSecretBuild(t)
		return
	}
	t.Run("as it is", func(t *testing.T) { t.Parallel(); s.ordinary(t) })
	t.Run("scrubbed", func(t *testing.T) { t.Parallel(); s.scrubbed(t) })
}

// unlocks is how often the client derives the key of the store's file: when it opens it, and to
// import, when it reads it again, writes it, and reads what it wrote.
func (s memoryScenario) unlocks() int {
	if s.pem {
		return 4
	}
	return 1
}

// rounds is how often the client asks.
func (s memoryScenario) rounds() int {
	if os.Getenv(memoryVar) == "full" {
		return memoryRounds
	}
	return memoryRounds / 4
}

// play loads the client and makes the rounds.
func (s memoryScenario) play(t *testing.T) (r *memoryRun, loaded *memoryCounts, all *testkit.SecretSearch) {
	t.Helper()
	r = startMemoryRun(t, s)
	r.tell("warm")
	loaded = r.column("loaded", testkit.NewSecretSearch(r.fixed))
	if s.before != "" {
		r.tell(s.before)
	}
	for range s.rounds() {
		r.round("round")
	}
	r.tell("calm")
	return r, loaded, testkit.NewSecretSearch(r.secrets())
}

// show prints the table, and holds it against the targets.
func (s memoryScenario) show(t *testing.T, columns []*memoryCounts) {
	t.Helper()
	t.Log(memoryTable(columns))
	saveHits(t, columns)
}

func (s memoryScenario) ordinary(t *testing.T) {
	r, loaded, all := s.play(t)
	idle := r.column("idle", all)
	mustNotBeDumped(t, idle.scan)
	r.tell("close")
	closed := r.column("closed", all)
	s.show(t, []*memoryCounts{loaded, idle, closed})
	if s.control {
		r.control(t)
	}
	if !s.asserted {
		return
	}
	idle.mustMeet(t, loaded, s.unlocks(), func(row string) memoryLimit {
		if s.protocol == "ohttp" && row == rowAPIKey {
			return none // it is sealed, and never becomes a header
		}
		return memoryTargets[row].idle
	})
	closed.mustMeet(t, idle, s.unlocks(), func(string) memoryLimit { return notMoreSoFar })
}

func (s memoryScenario) scrubbed(t *testing.T) {
	r, _, all := s.play(t)
	r.tell("scrub")
	scrubbed := r.column("scrubbed", all)
	r.tell("close")
	r.tell("scrub")
	closed := r.column("closed", all)
	s.show(t, []*memoryCounts{scrubbed, closed})
	if !s.asserted {
		return
	}
	limit := func(row string) memoryLimit {
		if at := memoryTargets[row]; s.before == "" || at.idle != counted || at.scrubbed != none {
			return at.scrubbed
		}
		// What crypto/rsa leaves at each use: when collections free pages all the while, the
		// runtime makes stacks for threads of them, which nothing here can reach. Seen in one run
		// of seven, one copy.
		return stray
	}
	scrubbed.mustMeet(t, nil, s.unlocks(), limit)
	closed.mustMeet(t, nil, s.unlocks(), limit)
}

func (s memoryScenario) inSecretBuild(t *testing.T) {
	r, loaded, all := s.play(t)
	r.tell("gc")
	collected := r.column("after a GC", all)
	mustNotBeDumped(t, collected.scan)
	r.tell("close")
	r.tell("gc")
	closed := r.column("closed", all)
	s.show(t, []*memoryCounts{loaded, collected, closed})
	if s.control {
		r.control(t)
	}
	if !s.asserted {
		return
	}
	limit := func(row string) memoryLimit { return memoryTargets[row].secret }
	collected.mustMeet(t, nil, s.unlocks(), limit)
	closed.mustMeet(t, nil, s.unlocks(), limit)
}

// control leaves a secret of each row lying about in a process that has none, in each way, one
// after the other, and looks whether it is found: a scanner that finds nothing proves nothing.
func (r *memoryRun) control(t *testing.T) {
	secrets := r.secrets()
	search := testkit.NewSecretSearch(secrets)
	samples := make(map[string]testkit.MemorySecret)
	for _, s := range secrets {
		if _, ok := samples[s.Row]; !ok && len(s.Parts) == 0 {
			samples[s.Row] = s
		}
	}
	for _, s := range secrets { // as crypto/rsa has it: words, and zeros above them
		if s.Row == rowKey && strings.HasSuffix(s.Name, " q") {
			q := slices.Clone(s.Bytes)
			slices.Reverse(q)
			samples[rowWidened] = testkit.MemorySecret{Row: rowWidened, Name: s.Name, Bytes: append(q, make([]byte, len(q))...)}
		}
	}
	fresh := &memoryRun{memoryProcess: startMemoryProcess(t, "client")}
	before := fresh.column("nothing", search)
	if len(before.scan.Hits) > 0 {
		t.Errorf("control: a process without secrets has\n%s", memoryTable([]*memoryCounts{before}))
	}
	for _, kind := range memoryPlantKinds {
		planted := 0
		for _, row := range memoryRows {
			if s := samples[row]; plantable(kind, s) {
				fresh.tell("plant "+kind, s.Bytes)
				planted++
			}
		}
		after := fresh.column(kind, search)
		for _, row := range memoryRows {
			if s := samples[row]; plantable(kind, s) && !after.hasNew(before, row, kind != "fragment", kind == "locked") {
				t.Errorf("control: %q left lying about (%s) is not found", row, kind)
			}
		}
		if planted < 3 {
			t.Errorf("control: only %d rows for %s", planted, kind)
		}
		before = after
	}
}

// plantable says whether a secret can lie about in this way: only integers in math/big, and pieces
// of a widened q are no different from those of any other.
func plantable(kind string, s testkit.MemorySecret) bool {
	return (kind != "limbs" || s.Integer) && (kind != "fragment" || s.Row != rowWidened)
}
