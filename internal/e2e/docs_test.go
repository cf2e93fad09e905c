// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"fmt"
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// document is a text for readers: its path, and its lines.
type document struct {
	path string
	text string
}

// documents are the files in Markdown of the root, of docs/ and of testdata/, and the README of the
// module attestation.
func documents(t *testing.T) (docs []document) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "testdata/*/README.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) < 2 {
			t.Fatalf("%s: %d files, %v", pattern, len(paths), err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			docs = append(docs, document{filepath.ToSlash(path), string(text)})
		}
	}
	const module = "attestation/README.md"
	return append(docs, document{module, readDocument(t, module)})
}

// readDocument is the text of one document.
func readDocument(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	docFence    = regexp.MustCompile("(?ms)^```.*?^```$")
	docGoBlock  = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")
	docCodeSpan = regexp.MustCompile("`[^`\n]*`")
	docLink     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	docURL      = regexp.MustCompile(`\S*://\S*`)
	docTestName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark|Example)[A-Z0-9]\w+`)
	docGoFile   = regexp.MustCompile(`[\w./-]*\w\.go\b`)
)

// prose is the text of a document without its code.
func (d *document) prose() string {
	return docCodeSpan.ReplaceAllString(docFence.ReplaceAllString(d.text, ""), "")
}

// TestDocumentSizes keeps the documents short that everybody reads.
func TestDocumentSizes(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	for _, path := range []string{"README.md", "SECURITY.md", "ARCHITECTURE.md"} {
		if n := len(readDocument(t, path)); n > 10_000 {
			t.Errorf("%s has %d bytes, more than 10,000", path, n)
		}
	}
}

// TestDocumentLines finds lines of more than 100 characters. Rows of tables and addresses cannot be
// wrapped; a cell has 120 at most.
func TestDocumentLines(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	for _, d := range documents(t) {
		n := 0
		for line := range strings.Lines(d.text) {
			n++
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, "|") {
				for cell := range strings.SplitSeq(docLink.ReplaceAllString(line, "]"), "|") {
					if l := utf8.RuneCountInString(strings.TrimSpace(cell)); l > 120 {
						t.Errorf("%s:%d has a cell of %d characters: a phrase is shorter", d.path,
							n, l)
					}
				}
				continue
			}
			if l := utf8.RuneCountInString(docURL.ReplaceAllString(line, "")); l > 100 {
				t.Errorf("%s:%d has %d characters", d.path, n, l)
			}
		}
	}
}

// anchors are the names of a document's headings, as a link writes them.
func (d *document) anchors() (names []string) {
	for line := range strings.Lines(docFence.ReplaceAllString(d.text, "")) {
		marks := len(line) - len(strings.TrimLeft(line, "#"))
		if marks == 0 || line[marks] != ' ' {
			continue
		}
		names = append(names, anchor(line[marks:]))
	}
	return names
}

// anchor is the name that GitHub gives a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
}

// section is the part of a document below a heading, up to the next one of the same level or above.
func (d *document) section(name string) string {
	var part strings.Builder
	level := 0
	for line := range strings.Lines(d.text) {
		marks := len(line) - len(strings.TrimLeft(line, "#"))
		heading := marks > 0 && line[marks] == ' '
		switch {
		case level == 0 && heading && anchor(line[marks:]) == name:
			level = marks
		case level > 0 && heading && marks <= level:
			return part.String()
		case level > 0:
			part.WriteString(line)
		}
	}
	return part.String()
}

// TestDocumentLinks follows the links of the documents to files and to headings.
func TestDocumentLinks(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	links := 0
	for _, d := range documents(t) {
		for _, m := range docLink.FindAllStringSubmatch(d.prose(), -1) {
			links++
			if err := follow(d.path, m[1]); err != nil {
				t.Errorf("%s links to %s: %v", d.path, m[1], err)
			}
		}
	}
	if links < 100 {
		t.Errorf("%d links, want 100 or more", links)
	}
}

// follow looks for the target of a link in the document at path.
func follow(path, target string) error {
	if strings.Contains(target, "://") {
		return nil // tests run offline
	}
	if strings.HasPrefix(target, "/") {
		return errors.New("links are relative")
	}
	file, name, named := strings.Cut(target, "#")
	to := path
	if file != "" {
		to = filepath.Join(filepath.Dir(path), file)
	}
	if _, err := os.Stat(to); err != nil {
		return err
	}
	if !named {
		return nil
	}
	text, err := os.ReadFile(to)
	if err != nil {
		return err
	}
	if d := (&document{to, string(text)}); !slices.Contains(d.anchors(), name) {
		return fmt.Errorf("%s has no such heading", to)
	}
	return nil
}

// TestLinksThatLeadNowhere shows that TestDocumentLinks finds them.
func TestLinksThatLeadNowhere(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	for _, target := range []string{
		"#no-such-heading", "SPEC.md#no-such-heading", "docs/nothing.md", "docs/memory.md#Memory",
		"testdata/nothing", "/README.md",
	} {
		if follow("README.md", target) == nil {
			t.Errorf("%s is found", target)
		}
	}
	if err := follow("docs/memory.md", "../README.md#links"); err != nil {
		t.Error(err)
	}
}

// statements are the tokens of Go code without comments, and the comments. Commas and semicolons
// that stand only at the end of a line are left out, so that code may be wrapped differently.
func statements(text string) (tokens, comments []string) {
	var s scanner.Scanner
	file := token.NewFileSet()
	s.Init(file.AddFile("", -1, len(text)), []byte(text), func(token.Position, string) {},
		scanner.ScanComments)
	for {
		_, kind, literal := s.Scan()
		switch {
		case kind == token.EOF:
			return tokens, comments
		case kind == token.COMMENT:
			comments = append(comments, literal)
			continue
		case kind == token.SEMICOLON && literal == "\n":
			continue
		case kind == token.RPAREN || kind == token.RBRACE || kind == token.RBRACK:
			if n := len(tokens); n > 0 && tokens[n-1] == "," {
				tokens = tokens[:n-1]
			}
		}
		if !kind.IsLiteral() {
			literal = kind.String()
		}
		tokens = append(tokens, literal)
	}
}

// compiled is the code that documents may quote: examples, as tokens that are joined.
type compiled struct {
	texts    []string
	comments map[string]bool
}

func compiledExamples(t *testing.T) (c compiled) {
	t.Helper()
	c.comments = make(map[string]bool)
	for _, pattern := range []string{
		"example*_test.go", "examples/*/*.go", "attestation/*/example_test.go",
	} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			tokens, comments := statements(readDocument(t, file))
			c.texts = append(c.texts, " "+strings.Join(tokens, " ")+" ")
			for _, comment := range comments {
				c.comments[comment] = true
			}
		}
	}
	return c
}

// missing are the parts of a block of code that no example has. A line "…" is left out code.
func (c *compiled) missing(block string) (parts []string) {
	for part := range strings.SplitSeq(block, "…\n") {
		tokens, comments := statements(part)
		code := " " + strings.Join(tokens, " ") + " "
		has := func(text string) bool { return strings.Contains(text, code) }
		if !slices.ContainsFunc(c.texts, has) {
			parts = append(parts, part)
		}
		for _, comment := range comments {
			if !c.comments[comment] {
				parts = append(parts, comment)
			}
		}
	}
	return parts
}

// TestDocumentCode finds the Go code of the documents in code that is compiled, so that it cannot
// rot. Whole programs are compiled as they are.
func TestDocumentCode(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	code := compiledExamples(t)
	blocks, programs := 0, 0
	for _, d := range documents(t) {
		for _, block := range docGoBlock.FindAllStringSubmatch(d.text, -1) {
			blocks++
			if strings.HasPrefix(block[1], "package main\n") {
				programs++
				compile(t, d.path, block[1])
				continue
			}
			for _, part := range code.missing(block[1]) {
				t.Errorf("%s: not in any example:\n%s", d.path, part)
			}
		}
	}
	if blocks < 10 || programs < 1 {
		t.Errorf("%d blocks of code, %d programs, want 10 and 1 or more", blocks, programs)
	}
}

// compile has the go command type-check a program.
func compile(t *testing.T, path, program string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "vet", file).CombinedOutput(); err != nil {
		t.Errorf("%s: a program does not compile: %v\n%s", path, err, out)
	}
}

// TestCodeThatIsNotCompiled shows that TestDocumentCode finds it.
func TestCodeThatIsNotCompiled(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	code := compiledExamples(t)
	const genuine = "server := gateway.Server(\":8443\")\nerr = " +
		"server.ListenAndServeTLS(\"cert.pem\", \"key.pem\")\n"
	if parts := code.missing(genuine); parts != nil {
		t.Errorf("%q is not found", parts)
	}
	for _, block := range []string{
		"server := gateway.Server(\":8444\")\n",
		"err = server.ListenAndServeTLS(\"cert.pem\", \"key.pem\")\nserver := " +
			"gateway.Server(\":8443\")\n",
		"server := gateway.Server(\":8443\")\nserver := gateway.Server(\":8443\")\n",
		"server := gateway.Server(\":8443\") // a comment that no example has\n",
		"…\nserver := gateway.NoSuchMethod()\n…\n",
	} {
		if code.missing(block) == nil {
			t.Errorf("%q is found", block)
		}
	}
}
