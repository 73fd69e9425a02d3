package main

import (
	"fmt"
	"strings"
)

// each joins n pieces of text.
func each(n int, piece func(i int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(piece(i))
	}
	return b.String()
}

func goProject() project {
	p := project{name: "go", files: map[string]string{"go.mod": "module example.com/app\n\ngo 1.26\n"},
		steps: []string{"go version && go env", "go build -v ./...", "go vet ./...", "go test -count=1 -v ./..."}}
	for i := range 10 {
		dir := fmt.Sprintf("pkg%02d/", i)
		imports := ""
		if i > 0 {
			imports = fmt.Sprintf("import \"example.com/app/pkg%02d\"\n\n// Prev is the sum of the one before.\nfunc Prev(a, b int) int { return pkg%02d.Add(a, b) }\n\n", i-1, i-1)
		}
		p.files[dir+"add.go"] = fmt.Sprintf("package pkg%02d\n\n%s// Add adds.\nfunc Add(a, b int) int { return a + b }\n\n// At is s[i].\nfunc At(s []int, i int) int { return s[i] }\n", i, imports)
		p.files[dir+"add_test.go"] = fmt.Sprintf("package pkg%02d\n\nimport \"testing\"\n\n", i) + each(12, func(k int) string {
			return fmt.Sprintf("func TestAdd%02d(t *testing.T) {\n\tif got := Add(%d, 1); got != %d {\n\t\tt.Errorf(\"Add(%d, 1) = %%d, want %d\", got)\n\t}\n}\n\n", k, k, k+1, k, k+1)
		})
	}
	src, test := "pkg04/add.go", "pkg04/add_test.go"
	body := "func Add(a, b int) int { return a + b }"
	p.faults = []fault{
		{"test-value", []edit{{test, "got != 4", "got != 5"}}, "Add(3, 1) = 4, want 4"},
		{"test-all", []edit{{src, "a + b", "a - b"}}, "Add(0, 1) = -1, want 1"},
		{"undefined", []edit{{src, "a + b", "a + c"}}, "undefined: c"},
		{"type", []edit{{src, "a + b", `a + "b"`}}, "mismatched types int and untyped string"},
		{"unused-var", []edit{{src, body, "func Add(a, b int) int { x := 1; return a + b }"}}, "declared and not used: x"},
		{"unused-import", []edit{{src, "// Add adds.", "// Add adds."}, {src, "import \"example.com/app/pkg03\"", "import \"example.com/app/pkg03\"\nimport \"os\""}}, `"os" imported and not used`},
		{"syntax", []edit{{src, "a + b }", "a + }"}}, "syntax error"},
		{"no-return", []edit{{src, "return a + b", "_ = a + b"}}, "missing return"},
		{"cycle", []edit{{"pkg00/add.go", "// Add adds.", "import \"example.com/app/pkg09\"\n\n// Nine is of nine.\nfunc Nine() int { return pkg09.Add(1, 2) }\n\n// Add adds."}}, "import cycle not allowed"},
		{"no-module", []edit{{src, "import \"example.com/app/pkg03\"", "import \"example.com/app/pkg03\"\nimport _ \"example.com/app/nothere\""}}, "cannot find module providing package example.com/app/nothere"},
		{"vet-printf", []edit{{test, `"Add(3, 1) = %d, want 4"`, `"Add(3, 1) = %s, want 4"`}}, "wrong type"},
		{"panic-nil", []edit{{test, "func TestAdd05(t *testing.T) {", "func TestAdd05(t *testing.T) {\n\tvar m map[string]int\n\tm[\"a\"] = 1"}}, "panic: assignment to entry in nil map"},
		{"panic-index", []edit{{test, "func TestAdd05(t *testing.T) {", "func TestAdd05(t *testing.T) {\n\tAt(nil, 3)"}}, "panic: runtime error: index out of range"},
		{"deadlock", []edit{{test, "func TestAdd05(t *testing.T) {", "func TestMain(m *testing.M) { select {} }\n\nfunc TestAdd05(t *testing.T) {"}}, "fatal error: all goroutines are asleep"},
		{"timeout", []edit{{test, "func TestAdd05(t *testing.T) {", "func TestAdd05(t *testing.T) {\n\t<-make(chan int)"}}, "panic: test timed out after 2s"},
		{"exit", []edit{{test, "func TestAdd05(t *testing.T) {", "func TestAdd05(t *testing.T) {\n\tprintln(\"configuration file /etc/app.toml is missing\")\n\tos.Exit(3)"}, {test, "import \"testing\"", "import (\n\t\"os\"\n\t\"testing\"\n)"}}, "configuration file /etc/app.toml is missing"},
		{"fatal", []edit{{test, "func TestAdd05(t *testing.T) {", "func TestAdd05(t *testing.T) {\n\tt.Fatal(\"dial tcp 127.0.0.1:5432: connect: connection refused\")"}}, "connection refused"},
		{"duplicate", []edit{{test, "func TestAdd05(", "func TestAdd04("}}, "TestAdd04 redeclared in this block"},
	}
	for i := range p.faults {
		if p.faults[i].name == "timeout" {
			p.faults[i].edits = append(p.faults[i].edits, edit{"timeout", "", "2s"})
		}
	}
	p.steps[3] = "go test -count=1 -timeout \"$(cat timeout 2>/dev/null || echo 10m)\" -v ./..."
	return p
}

func nodeProject() project {
	p := project{name: "npm", steps: []string{"node --version && npm --version", "npm ci --offline --loglevel verbose", "npm test"}, files: map[string]string{
		"package.json":      "{\n  \"name\": \"app\",\n  \"version\": \"1.0.0\",\n  \"type\": \"module\",\n  \"scripts\": {\n    \"pretest\": \"node check.js\",\n    \"test\": \"node --test --test-reporter=spec test/\"\n  }\n}\n",
		"package-lock.json": "{\n  \"name\": \"app\",\n  \"version\": \"1.0.0\",\n  \"lockfileVersion\": 3,\n  \"packages\": {\"\": {\"name\": \"app\", \"version\": \"1.0.0\"}}\n}\n",
		"check.js":          "import { settings } from './settings.js';\nfor (const k of Object.keys(settings)) console.log('setting', k, '=', settings[k]);\n",
		"settings.js":       "export const settings = {" + each(40, func(i int) string { return fmt.Sprintf("\n  key%02d: %d,", i, i*i) }) + "\n};\n",
	}}
	for f := range 8 {
		p.files[fmt.Sprintf("lib/m%d.js", f)] = "export function add(a, b) { return a + b; }\nexport function load(s) { return JSON.parse(s); }\n"
		p.files[fmt.Sprintf("test/m%d.test.js", f)] = fmt.Sprintf("import test from 'node:test';\nimport assert from 'node:assert/strict';\nimport { add, load } from '../lib/m%d.js';\n", f) +
			each(15, func(i int) string {
				return fmt.Sprintf("test('m%d adds %d', () => { assert.equal(add(%d, 1), %d); });\n", f, i, i, i+1)
			})
	}
	lib, test := "lib/m3.js", "test/m3.test.js"
	one := "test('m3 adds 7', () => { assert.equal(add(7, 1), 8); });"
	p.faults = []fault{
		{"assert", []edit{{test, "add(7, 1), 8", "add(7, 1), 9"}}, "8 !== 9"},
		{"typeerror", []edit{{test, one, "test('m3 adds 7', () => { undefined.x; });"}}, "Cannot read properties of undefined (reading 'x')"},
		{"reference", []edit{{lib, "a + b", "a + c"}}, "c is not defined"},
		{"syntax", []edit{{lib, "a + b;", "a + ;"}}, "SyntaxError: Unexpected token ';'"},
		{"no-module", []edit{{lib, "export function add", "import x from 'left-pad';\nexport function add"}}, "Cannot find package 'left-pad'"},
		{"no-export", []edit{{lib, "export function load", "function load"}}, "does not provide an export named 'load'"},
		{"reject", []edit{{test, one, "test('m3 adds 7', async () => { await Promise.reject(new Error('upstream answered 503')); });"}}, "upstream answered 503"},
		{"json", []edit{{test, one, "test('m3 adds 7', () => { load('{\"a\":'); });"}}, "Unexpected end of JSON input"},
		{"deep", []edit{{test, one, "test('m3 adds 7', () => { assert.deepEqual({ a: 1, b: [1, 2] }, { a: 1, b: [1, 3] }); });"}}, "Expected values to be strictly deep-equal"},
		{"enoent", []edit{{test, one, "import fs from 'node:fs';\ntest('m3 adds 7', () => { fs.readFileSync('/etc/app/config.json'); });"}}, "ENOENT: no such file or directory, open '/etc/app/config.json'"},
		{"refused", []edit{{test, one, "import net from 'node:net';\ntest('m3 adds 7', () => new Promise((ok, no) => net.connect(1, '127.0.0.1').on('error', no)));"}}, "connect ECONNREFUSED 127.0.0.1:1"},
		{"pretest", []edit{{"check.js", "import { settings }", "import { setting }"}}, "does not provide an export named 'setting'"},
		{"no-script", []edit{{"package.json", "\"test\":", "\"tests\":"}}, "Missing script: \"test\""},
		{"badjson", []edit{{"package.json", "\"type\": \"module\",", "\"type\": \"module\",,"}}, "EJSONPARSE"},
		{"lock", []edit{{"package.json", "\"type\": \"module\",", "\"type\": \"module\",\n  \"dependencies\": {\"left-pad\": \"1.3.0\"},"}}, "request to https://registry.npmjs.org/left-pad failed"},
		{"engine", []edit{{".npmrc", "", "engine-strict=true\n"}, {"package.json", "\"type\": \"module\",", "\"type\": \"module\",\n  \"engines\": {\"node\": \">=99\"},"}}, "EBADENGINE"},
	}
	return p
}

func tscProject() project {
	p := project{name: "tsc", steps: []string{"node --version", "npm run build", "npm run lint"}, files: map[string]string{
		"package.json":  "{\n  \"name\": \"app\",\n  \"version\": \"1.0.0\",\n  \"scripts\": {\"build\": \"$TS/tsc -p . --listFiles\", \"lint\": \"$TS/eslint --no-eslintrc --rule '{\\\"no-unused-vars\\\":2,\\\"eqeqeq\\\":2,\\\"no-debugger\\\":2}' --parser-options=ecmaVersion:2022,sourceType:module --format stylish js && ls -la js\"}\n}\n",
		"tsconfig.json": "{\"compilerOptions\": {\"strict\": true, \"noEmit\": true, \"target\": \"es2022\", \"module\": \"es2022\", \"moduleResolution\": \"bundler\", \"types\": []}, \"include\": [\"src\"]}\n",
	}}
	for i := range 20 {
		p.files[fmt.Sprintf("src/m%02d.ts", i)] = "export interface User { name: string; age: number }\nexport function greet(u: User): string { return u.name + u.age; }\n"
		p.files[fmt.Sprintf("js/m%02d.js", i)] = "export function f(a) { return a === 1; }\n"
	}
	src := "src/m11.ts"
	p.faults = []fault{
		{"type", []edit{{src, "return u.name + u.age;", "return u.age;"}}, "TS2322"},
		{"property", []edit{{src, "u.age;", "u.agee;"}}, "TS2551"},
		{"argument", []edit{{src, "export function greet", "greet({ name: 'a' });\nexport function greet"}}, "TS2345"},
		{"module", []edit{{src, "export interface", "import { x } from './nothere';\nexport interface"}}, "TS2307"},
		{"syntax", []edit{{src, "return u.name + u.age; }", "return u.name +; }"}}, "TS1109"},
		{"null", []edit{{src, "return u.name + u.age;", "const m = u.name.match(/x/); return m[0];"}}, "TS18047"},
		{"eslint-unused", []edit{{"js/m07.js", "return a === 1;", "const z = 2; return a === 1;"}}, "'z' is assigned a value but never used"},
		{"eslint-eq", []edit{{"js/m07.js", "===", "=="}}, "Expected '===' and instead saw '=='"},
	}
	return p
}

func pytestProject() project {
	p := project{name: "pytest", steps: []string{"python --version && pip --version && pip list", "python -m compileall -f src tests", "python -m pytest -v -p no:cacheprovider"}, files: map[string]string{
		"src/calc.py":       "def add(a, b):\n    return a + b\n\n\ndef parse(s):\n    return int(s)\n\n\ndef get(d, k):\n    return d[k]\n",
		"tests/conftest.py": "import sys, pathlib, pytest\nsys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'src'))\n\n\n@pytest.fixture\ndef user():\n    return {'name': 'a'}\n",
	}}
	for f := range 6 {
		p.files[fmt.Sprintf("tests/test_m%d.py", f)] = "import pytest\nfrom calc import add, parse, get\n\n\n@pytest.mark.parametrize('n', range(25))\ndef test_add(n):\n    assert add(n, 1) == n + 1\n\n\ndef test_user(user):\n    assert get(user, 'name') == 'a'\n\n\ndef test_parse():\n    assert parse('12') == 12\n"
	}
	test := "tests/test_m3.py"
	line := "    assert parse('12') == 12"
	p.faults = []fault{
		{"assert", []edit{{test, "parse('12') == 12", "parse('12') == 13"}}, "assert 12 == 13"},
		{"value", []edit{{test, "parse('12') ==", "parse('twelve') =="}}, "ValueError: invalid literal for int()"},
		{"key", []edit{{test, "'name'", "'email'"}}, "KeyError: 'email'"},
		{"import", []edit{{test, "import add,", "import addd,"}}, "cannot import name 'addd'"},
		{"module", []edit{{test, "import pytest", "import pytest\nimport requests_not_installed"}}, "No module named 'requests_not_installed'"},
		{"syntax", []edit{{test, "def test_parse():", "def test_parse()"}}, "SyntaxError: expected ':'"},
		{"indent", []edit{{"src/calc.py", "    return int(s)", "return int(s)"}}, "IndentationError: expected an indented block"},
		{"fixture", []edit{{test, "def test_user(user)", "def test_user(account)"}}, "fixture 'account' not found"},
		{"param", []edit{{"src/calc.py", "return a + b", "return a + b if a != 17 else 0"}}, "assert 0 == (17 + 1)"},
		{"zero", []edit{{test, line, "    assert 1 / (parse('0')) == 12"}}, "ZeroDivisionError: division by zero"},
		{"attribute", []edit{{test, line, "    assert parse('12').lower() == 12"}}, "AttributeError: 'int' object has no attribute 'lower'"},
		{"refused", []edit{{test, line, "    import socket\n    socket.create_connection(('127.0.0.1', 1), 1)"}}, "ConnectionRefusedError: [Errno 111]"},
		{"file", []edit{{test, line, "    open('/etc/app/settings.ini')"}}, "FileNotFoundError: [Errno 2]"},
		{"raises", []edit{{test, line, "    with pytest.raises(ValueError):\n        parse('12')"}}, "DID NOT RAISE"},
		{"recursion", []edit{{"src/calc.py", "return d[k]", "return get(d, k)"}}, "RecursionError: maximum recursion depth exceeded"},
		{"conftest", []edit{{"tests/conftest.py", "return {'name': 'a'}", "raise RuntimeError('database schema is at version 3, expected 4')"}}, "RuntimeError: database schema is at version 3, expected 4"},
	}
	return p
}

func cargoProject() project {
	p := project{name: "cargo", steps: []string{"cargo --version --verbose", "cargo build --offline --verbose", "cargo test --offline --no-fail-fast"}, files: map[string]string{
		"Cargo.toml": "[workspace]\nmembers = [\"c0\", \"c1\", \"c2\", \"c3\"]\nresolver = \"2\"\n",
	}}
	for c := range 4 {
		dir := fmt.Sprintf("c%d/", c)
		p.files[dir+"Cargo.toml"] = fmt.Sprintf("[package]\nname = \"c%d\"\nversion = \"0.1.0\"\nedition = \"2021\"\n", c)
		p.files[dir+"src/lib.rs"] = "pub fn add(a: i64, b: i64) -> i64 {\n    a + b\n}\n\npub fn name(s: &str) -> String {\n    s.to_string()\n}\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n" +
			each(30, func(i int) string {
				return fmt.Sprintf("    #[test]\n    fn adds_%d() {\n        assert_eq!(add(%d, 1), %d);\n    }\n", i, i, i+1)
			}) + "}\n"
	}
	src := "c2/src/lib.rs"
	p.faults = []fault{
		{"type", []edit{{src, "    a + b\n", "    \"sum\"\n"}}, "error[E0308]: mismatched types"},
		{"undefined", []edit{{src, "    a + b\n", "    a + c\n"}}, "error[E0425]: cannot find value `c`"},
		{"borrow", []edit{{src, "    s.to_string()", "    let x = s.to_string();\n    let y = x;\n    format!(\"{x}{y}\")"}}, "error[E0382]: borrow of moved value: `x`"},
		{"mutable", []edit{{src, "    a + b\n", "    let v = vec![a];\n    v.push(b);\n    v.len() as i64\n"}}, "error[E0596]: cannot borrow `v` as mutable"},
		{"lifetime", []edit{{src, "pub fn name(s: &str) -> String {\n    s.to_string()", "pub fn name(s: &str, t: &str) -> &str {\n    if s > t { s } else { t }"}}, "error[E0106]: missing lifetime specifier"},
		{"trait", []edit{{src, "    s.to_string()", "    struct P;\n    format!(\"{}{}\", s, P)"}}, "doesn't implement `std::fmt::Display`"},
		{"syntax", []edit{{src, "    a + b\n}", "    a + b\n"}}, "error: this file contains an unclosed delimiter"},
		{"assert", []edit{{src, "assert_eq!(add(7, 1), 8)", "assert_eq!(add(7, 1), 9)"}}, "assertion `left == right` failed"},
		{"unwrap", []edit{{src, "assert_eq!(add(7, 1), 8)", "\"x\".parse::<i64>().unwrap()"}, {src, ".unwrap();", ".unwrap();\n"}}, "called `Result::unwrap()` on an `Err` value"},
		{"overflow", []edit{{src, "assert_eq!(add(7, 1), 8)", "assert_eq!(add(i64::MAX, 1), 8)"}}, "attempt to add with overflow"},
		{"index", []edit{{src, "assert_eq!(add(7, 1), 8)", "let v: Vec<i64> = Vec::new(); let i = v.len(); assert_eq!(v[i], 8)"}}, "index out of bounds: the len is 0"},
		{"crate", []edit{{src, "pub fn add", "use serde_nothere::Value;\npub fn add"}}, "serde_nothere"},
		{"manifest", []edit{{"c2/Cargo.toml", "edition = \"2021\"", "edition = \"2021"}}, "basic string"},
		{"deny", []edit{{src, "pub fn add", "#![deny(unused_variables)]\npub fn unused() { let x = 1; }\npub fn add"}}, "unused variable: `x`"},
	}
	return p
}

func gccProject() project {
	names := each(30, func(i int) string { return fmt.Sprintf(" m%02d.o", i) })
	p := project{name: "gcc", steps: []string{"gcc --version && make --version", "make -k", "make test"}, files: map[string]string{
		"Makefile": "CFLAGS = -Wall -Wextra -Werror=implicit-function-declaration -g -O0 -std=c11 $(EXTRA)\nOBJS =" + names + "\nall: app\napp: main.o $(OBJS)\n\t$(CC) -o $@ $^ $(EXTRA)\n%.o: %.c app.h\n\t$(CC) $(CFLAGS) -c -o $@ $<\ntest: app\n\t./app\n",
		"app.h":    each(30, func(i int) string { return fmt.Sprintf("int f%02d(int a);\n", i) }),
		"main.c":   "#include <stdio.h>\n#include <assert.h>\n#include \"app.h\"\nint main(void) {\n  setbuf(stdout, NULL);\n" + each(30, func(i int) string { return fmt.Sprintf("  assert(f%02d(1) == %d); puts(\"f%02d ok\");\n", i, i+1, i) }) + "  return 0;\n}\n",
	}}
	for i := range 30 {
		p.files[fmt.Sprintf("m%02d.c", i)] = fmt.Sprintf("#include \"app.h\"\nint f%02d(int a) { return a + %d; }\n", i, i)
	}
	src := "m17.c"
	body := "{ return a + 17; }"
	p.faults = []fault{
		{"semicolon", []edit{{src, "a + 17;", "a + 17"}}, "error: expected ‘;’ before"},
		{"undeclared", []edit{{src, "a + 17", "a + b"}}, "error: ‘b’ undeclared"},
		{"header", []edit{{src, "#include \"app.h\"", "#include \"app.h\"\n#include <nothere/nothere.h>"}}, "fatal error: nothere/nothere.h: No such file or directory"},
		{"undefined", []edit{{src, "int f17(int a)", "int f17x(int a)"}}, "undefined reference to `f17'"},
		{"multiple", []edit{{src, "int f17(int a)", "int f16(int a) { return a; }\nint f17(int a)"}}, "multiple definition of `f16'"},
		{"implicit", []edit{{src, "a + 17", "helper(a)"}}, "implicit declaration of function ‘helper’"},
		{"conflict", []edit{{src, "int f17(int a)", "int f17(char *a)"}}, "error: conflicting types for ‘f17’"},
		{"args", []edit{{"main.c", "f17(1)", "f17(1, 2)"}}, "error: too many arguments to function ‘f17’"},
		{"assert", []edit{{src, "a + 17", "a + 18"}}, "Assertion `f17(1) == 18' failed"},
		{"segv", []edit{{src, body, "{ int *p = (int *)0; return *p + a; }"}}, "Segmentation fault"},
		{"abort", []edit{{src, "#include \"app.h\"", "#include <stdlib.h>\n#include \"app.h\""}, {src, body, "{ char *p = malloc(8); free(p); free(p); return a; }"}}, "free(): double free detected"},
		{"asan", []edit{{"Makefile", "$(EXTRA)\nOBJS", "-fsanitize=address\nOBJS"}, {"Makefile", "$^ $(EXTRA)", "$^ -fsanitize=address"}, {src, "#include \"app.h\"", "#include <stdlib.h>\n#include \"app.h\""}, {src, body, "{ char *p = malloc(8); free(p); return a + p[1]; }"}}, "ERROR: AddressSanitizer: heap-use-after-free"},
		{"no-rule", []edit{{"Makefile", " m17.o", " m17.o m99.o"}}, "No rule to make target 'm99.o'"},
		{"separator", []edit{{"Makefile", "\t./app", "    ./app"}}, "missing separator"},
	}
	return p
}

func mavenProject() project {
	p := project{name: "maven", steps: []string{"mvn --version", "mvn -B -o dependency:resolve || true", "mvn -B -o package"}, files: map[string]string{
		"pom.xml": "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion><groupId>a</groupId><artifactId>app</artifactId><version>1</version>\n<properties><maven.compiler.source>17</maven.compiler.source><maven.compiler.target>17</maven.compiler.target><project.build.sourceEncoding>UTF-8</project.build.sourceEncoding></properties>\n<dependencies><dependency><groupId>junit</groupId><artifactId>junit</artifactId><version>4.13.2</version><scope>test</scope></dependency></dependencies>\n</project>\n",
	}}
	for i := range 25 {
		p.files[fmt.Sprintf("src/main/java/app/M%02d.java", i)] = fmt.Sprintf("package app;\n\npublic class M%02d {\n  public static int add(int a, int b) {\n    return a + b;\n  }\n}\n", i)
		p.files[fmt.Sprintf("src/test/java/app/M%02dTest.java", i)] = fmt.Sprintf("package app;\n\nimport static org.junit.Assert.assertEquals;\nimport org.junit.Test;\n\npublic class M%02dTest {\n  @Test public void adds() {\n    assertEquals(3, M%02d.add(1, 2));\n  }\n}\n", i, i)
	}
	src, test := "src/main/java/app/M12.java", "src/test/java/app/M12Test.java"
	p.faults = []fault{
		{"symbol", []edit{{src, "a + b", "a + c"}}, "cannot find symbol"},
		{"types", []edit{{src, "a + b", "\"sum\""}}, "incompatible types: String cannot be converted to int"},
		{"semicolon", []edit{{src, "a + b;", "a + b"}}, "';' expected"},
		{"return", []edit{{src, "return a + b;", "int c = a + b;"}}, "missing return statement"},
		{"package", []edit{{src, "package app;", "package app;\nimport com.example.nothere.Thing;"}}, "package com.example.nothere does not exist"},
		{"assert", []edit{{test, "assertEquals(3", "assertEquals(4"}}, "expected:<4> but was:<3>"},
		{"npe", []edit{{test, "assertEquals(3, M12.add(1, 2));", "String s = null; s.length();"}}, "NullPointerException"},
		{"exception", []edit{{test, "assertEquals(3, M12.add(1, 2));", "throw new IllegalStateException(\"migration 7 was applied twice\");"}}, "migration 7 was applied twice"},
		{"dependency", []edit{{"pom.xml", "</dependencies>", "<dependency><groupId>com.example.nothere</groupId><artifactId>nothere</artifactId><version>1.0</version></dependency></dependencies>"}}, "com.example.nothere:nothere:jar:1.0"},
		{"pom", []edit{{"pom.xml", "</dependencies>", "</dependencie>"}}, "must match start-tag"},
	}
	return p
}

func terraformProject() project {
	p := project{name: "terraform", steps: []string{"terraform version", "terraform init", "terraform validate", "terraform plan -input=false", "terraform apply -input=false -auto-approve"}, files: map[string]string{
		"main.tf": "variable \"region\" {\n  type    = string\n  default = \"eu\"\n}\n\n" + each(24, func(i int) string {
			return fmt.Sprintf("resource \"terraform_data\" \"r%02d\" {\n  input = \"${var.region}-%d\"\n}\n\n", i, i)
		}),
	}}
	at := "input = \"${var.region}-13\""
	p.faults = []fault{
		{"argument", []edit{{"main.tf", at, at + "\n  size = 3"}}, "Unsupported argument"},
		{"reference", []edit{{"main.tf", at, "input = terraform_data.nothere.output"}}, "Reference to undeclared resource"},
		{"variable", []edit{{"main.tf", at, "input = var.zone"}}, "Reference to undeclared input variable"},
		{"function", []edit{{"main.tf", at, "input = uppercase(var.region)"}}, "Call to unknown function"},
		{"cycle", []edit{{"main.tf", at, "input = terraform_data.r14.output"}, {"main.tf", "input = \"${var.region}-14\"", "input = terraform_data.r13.output"}}, "Error: Cycle:"},
		{"syntax", []edit{{"main.tf", at, "input = \"${var.region}-13"}}, "Invalid multi-line string"},
		{"precondition", []edit{{"main.tf", at, at + "\n  lifecycle {\n    precondition {\n      condition     = var.region == \"us\"\n      error_message = \"only us is allowed in this account\"\n    }\n  }"}}, "only us is allowed in this account"},
		{"provisioner", []edit{{"main.tf", at, at + "\n  provisioner \"local-exec\" {\n    command = \"echo cannot reach the bastion host >&2; exit 4\"\n  }"}}, "cannot reach the bastion host"},
		{"file", []edit{{"main.tf", at, "input = file(\"nothere.json\")"}}, "Invalid function argument"},
		{"duplicate", []edit{{"main.tf", "\"r14\"", "\"r13\""}}, "Duplicate resource \"terraform_data\" configuration"},
	}
	return p
}
