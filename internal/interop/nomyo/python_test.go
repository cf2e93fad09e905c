// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const nomyoVersion = "0.2.9"

// packages lists the packages that the scripts import. The version of httpx decides how nomyo sees
// a broken connection.
var packages = []string{"nomyo==" + nomyoVersion, "cryptography==48.0.0", "httpx==0.28.1"}

const (
	installDeadline = 3 * time.Minute
	scriptDeadline  = time.Minute
)

// The variables that TestMain sets and every test reads.
var (
	python      string // path of the interpreter
	noPython    error  // why there is no Python
	gatewayKeys *sealedchat.KeyStore
	clientKeys  *sealedchat.KeyStore
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sealedchat-interop-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if python, err = findPython(dir); err != nil {
		if os.Getenv("SEALEDCHAT_INTEROP") == "required" || os.Getenv("SEALEDCHAT_PYTHON") != "" {
			fmt.Fprintln(os.Stderr, "interop: FAILED:", err)
			return 1
		}
		fmt.Fprintln(os.Stderr, "interop: SKIPPED:", err)
		noPython = err
	}
	gatewayKeys, err = sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 4096})
	if err == nil {
		clientKeys, err = sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		return 1
	}
	code := m.Run()
	gatewayKeys.Close()
	clientKeys.Close()
	if err := goroutinesEnd(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "interop:", err)
		code = 1
	}
	return code
}

// findPython returns an interpreter that has the packages.
func findPython(dir string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), installDeadline)
	defer cancel()
	const check = "import sys, nomyo, httpx, cryptography; sys.exit(nomyo.__version__ != '" +
		nomyoVersion + "')"
	if given := os.Getenv("SEALEDCHAT_PYTHON"); given != "" {
		if err := command(ctx, given, "-c", check); err != nil {
			return "", fmt.Errorf("SEALEDCHAT_PYTHON does not have nomyo %s: %w", nomyoVersion, err)
		}
		return given, nil
	}
	base, err := exec.LookPath("python3")
	if err != nil {
		return "", fmt.Errorf("no python3: %w", err)
	}
	venv := filepath.Join(dir, "venv")
	if err := command(ctx, base, "-m", "venv", venv); err != nil {
		return "", fmt.Errorf("python3 -m venv: %w", err)
	}
	made := filepath.Join(venv, "bin", "python")
	if runtime.GOOS == "windows" {
		made = filepath.Join(venv, "Scripts", "python.exe")
	}
	pip := append([]string{"-m", "pip", "install", "-q", "--no-input",
		"--disable-pip-version-check"}, packages...)
	if err := command(ctx, made, pip...); err != nil {
		return "", fmt.Errorf("pip install %s: %w", strings.Join(packages, " "), err)
	}
	if err := command(ctx, made, "-c", check); err != nil {
		return "", fmt.Errorf("the packages do not import: %w", err)
	}
	return made, nil
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out[max(0, len(out)-400):]))
	}
	return nil
}

// goroutinesEnd waits until the goroutines of the tests have ended. The tests close everything that
// they open.
func goroutinesEnd() error {
	stacks := make([]byte, 1<<20)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var left []string
		for i, one := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			// The first goroutine is this one. The one that wipes protected memory (memguard)
			// belongs to the process.
			if i > 0 && (strings.Contains(one, "seed-017344ad/sealedchat") ||
				strings.Contains(one, "net/http.")) {
				left = append(left, one)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("goroutines stay behind:\n" + strings.Join(left, "\n\n"))
		}
	}
}

func needPython(t *testing.T) {
	t.Helper()
	if noPython != nil {
		t.Skip("no Python to talk to: ", noPython)
	}
}

// environment returns the environment of the process without the variables that change how Python
// finds modules, servers and certificates.
func environment(extra ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		name := strings.ToUpper(v[:strings.IndexByte(v+"=", '=')])
		if !strings.HasPrefix(name, "PYTHON") && !strings.HasPrefix(name, "SSL_CERT_") &&
			!strings.HasSuffix(name, "_PROXY") {
			env = append(env, v)
		}
	}
	return append(append(env, "PYTHONDONTWRITEBYTECODE=1", "PYTHONUTF8=1"), extra...)
}

// job is the work of one nomyo client: its requests, one after the other.
type job struct {
	BaseURL string `json:"base_url"`
	APIKey  string `json:"api_key,omitempty"`
	// "" = keys of the client's own, generated
	KeyDir     string           `json:"key_dir,omitempty"`
	MaxRetries *int             `json:"max_retries,omitempty"`
	Requests   []map[string]any `json:"requests"` // arguments of create
}

// outcome is the result of create, or the exception that it raised.
type outcome struct {
	Response json.RawMessage `json:"response"`
	Error    string          `json:"error"` // name of the class
	Message  string          `json:"message"`
	Status   int             `json:"status"`
	Details  map[string]any  `json:"details"`
}

func (o outcome) String() string {
	if o.Error == "" {
		return fmt.Sprintf("%.300s", o.Response)
	}
	return fmt.Sprintf("%s(%d): %s", o.Error, o.Status, o.Message)
}

// runNomyo runs every job at the same time, in one process, which trusts certificates of trusted
// ("" = none).
func runNomyo(t *testing.T, trusted string, jobs ...job) [][]outcome {
	t.Helper()
	input, err := json.Marshal(jobs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), scriptDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, filepath.Join("testdata", "nomyo_client.py"))
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = environment()
	if trusted != "" {
		cmd.Env = environment("SSL_CERT_FILE=" + trusted)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("nomyo_client.py: %v\n%s", err, stderr.Bytes())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what Python wrote to stderr:\n%.20000s", stderr.Bytes())
		}
	})
	var outcomes [][]outcome
	if err := json.Unmarshal(stdout.Bytes(), &outcomes); err != nil || len(outcomes) != len(jobs) {
		t.Fatalf("nomyo_client.py printed %d outcomes for %d jobs (%v):\n%.1000s", len(outcomes),
			len(jobs), err, stdout.Bytes())
	}
	for i, o := range outcomes {
		if len(o) != len(jobs[i].Requests) {
			t.Fatalf("job %d: %d outcomes for %d requests", i, len(o), len(jobs[i].Requests))
		}
	}
	return outcomes
}

// keyDir returns a folder with a stored key, in the form of nomyo. A client takes half a second to
// generate a key of 4096 bits or to check one; tests with many clients use the key "rsa-2048".
func keyDir(t *testing.T, key string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		"private_key.pem": testkit.KeyPEM(t, key), "public_key.pem": testkit.PublicPEM(t, key),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
