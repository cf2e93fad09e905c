// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var updateAPI = flag.Bool("update", false, "write testdata/api.txt anew")

// TestAPI compares what the package exports with testdata/api.txt, one declaration a line. A change
// is made with
//
//	go test -run '^TestAPI$' -update .
//
// so that it shows in review, and is told in CHANGELOG.md.
func TestAPI(t *testing.T) {
	const golden = "testdata/api.txt"
	got := exportedAPI(t, ".")
	if len(got) < 100 {
		t.Fatalf("%d lines, want more: were the files read?", len(got))
	}
	if *updateAPI {
		if err := os.WriteFile(golden, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSuffix(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n"),
		"\n")
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("- %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("+ %s", line)
		}
	}
	if !t.Failed() && !slices.Equal(got, want) {
		t.Errorf("%s is not sorted, or says something twice", golden)
	}
	if t.Failed() {
		t.Log("lines with - are gone, lines with + are new; if that is meant: go test -run " +
			"'^TestAPI$' -update .")
	}
}

// TestExportedAPI has one of each kind of declaration, and what must not show.
func TestExportedAPI(t *testing.T) {
	dir := t.TempDir()
	source := `package p
import "io"
type (
	T struct { A, B int "tag"; c int; io.Reader; hidden }
	hidden struct { D int }
	I interface { M(x int) error; m() }
	G[K comparable] map[K]string
	Alias = T
)
const C, D T = 1, 2
const ( E = iota; F )
var V, w = 1, 2
func Func(a, b int, opts ...string) (n int, err error) { return }
func (t *T) Method() {}
func (g G[K]) Get(k K) string { return "" }
func (h hidden) Exported() {}
func unexported() {}
`
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "p_test.go"), []byte("package p\nfunc Test() {}\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"const C T = 1", "const D T = 2", "const E", "const F",
		"func Func(a, b int, opts ...string) (n int, err error)",
		"method (*T) Method()", "method (G[K]) Get(k K) string",
		"type Alias = T", "type G[K comparable] map[K]string", "type I interface",
		"type I interface, M(x int) error",
		"type I interface, unexported methods", "type T struct", "type T struct, A int",
		"type T struct, B int",
		"type T struct, embedded io.Reader", "type T struct, unexported fields", "var V",
	}
	if got := exportedAPI(t, dir); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// apiPrinter collects lines. It reads the source alone, the files of every platform, and no types.
type apiPrinter struct {
	t     *testing.T
	lines []string
}

func exportedAPI(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	p := &apiPrinter{t: t}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			p.declaration(d)
		}
	}
	slices.Sort(p.lines)
	return slices.Compact(p.lines) // what several platforms' files declare
}

func (p *apiPrinter) add(parts ...string) { p.lines = append(p.lines, strings.Join(parts, "")) }

// text prints a node on one line.
func (p *apiPrinter) text(node any) string {
	var b bytes.Buffer
	if err := printer.Fprint(&b, token.NewFileSet(), node); err != nil {
		p.t.Fatal(err)
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func (p *apiPrinter) declaration(d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		p.function(d)
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				p.typeSpec(spec)
			case *ast.ValueSpec:
				p.values(d.Tok.String(), spec)
			}
		}
	}
}

func (p *apiPrinter) function(d *ast.FuncDecl) {
	signature := d.Name.Name + strings.TrimPrefix(p.text(d.Type), "func")
	switch {
	case !d.Name.IsExported():
	case d.Recv == nil:
		p.add("func ", signature)
	default:
		receiver := p.text(d.Recv.List[0].Type)
		if ast.IsExported(strings.TrimPrefix(receiver, "*")) {
			p.add("method (", receiver, ") ", signature)
		}
	}
}

// values shows constants with their values, which are part of the API, but not those that are
// counted.
func (p *apiPrinter) values(kind string, spec *ast.ValueSpec) {
	for i, name := range spec.Names {
		if !name.IsExported() {
			continue
		}
		line := kind + " " + name.Name
		if spec.Type != nil {
			line += " " + p.text(spec.Type)
		}
		if kind == "const" && i < len(spec.Values) {
			if value := p.text(spec.Values[i]); !strings.Contains(value, "iota") {
				line += " = " + value
			}
		}
		p.add(line)
	}
}

func (p *apiPrinter) typeSpec(spec *ast.TypeSpec) {
	if !spec.Name.IsExported() {
		return
	}
	head := "type " + spec.Name.Name
	if spec.TypeParams != nil {
		head += "[" + strings.TrimSuffix(
			strings.TrimPrefix(p.text(&ast.FuncType{Params: spec.TypeParams}), "func("), ")") + "]"
	}
	switch typ := spec.Type.(type) {
	case *ast.StructType:
		p.members(head+" struct", typ.Fields, "fields")
	case *ast.InterfaceType:
		p.members(head+" interface", typ.Methods, "methods")
	default:
		if spec.Assign.IsValid() {
			head += " ="
		}
		p.add(head, " ", p.text(spec.Type))
	}
}

func (p *apiPrinter) members(head string, list *ast.FieldList, what string) {
	p.add(head)
	hidden := false
	for _, f := range list.List {
		typ := p.text(f.Type)
		if _, method := f.Type.(*ast.FuncType); method && what == "methods" {
			typ = strings.TrimPrefix(typ, "func")
		} else {
			typ = " " + typ
		}
		if len(f.Names) == 0 {
			if name := typ[strings.LastIndexAny(typ, " .*")+1:]; ast.IsExported(name) {
				p.add(head, ", embedded", typ)
			} else {
				hidden = true
			}
		}
		for _, name := range f.Names {
			if name.IsExported() {
				p.add(head, ", ", name.Name, typ)
			} else {
				hidden = true
			}
		}
	}
	if hidden {
		p.add(head, ", unexported ", what)
	}
}
