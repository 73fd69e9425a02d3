package runner

import (
	"strings"

	"github.com/terraphim/tgr/workflow"
)

// shell is how a script is run.
type shell struct {
	shown  string // as GitHub prints it, with {0} for the script
	format string // the command line, with {0} for the script
	ext    string // of the script's file
	alt    string // the command line where the program is not installed; "": there is none
	wrap   func(script string) string
}

// The command lines of the shells that have a name.
const (
	bashNamed   = "bash --noprofile --norc -e -o pipefail {0}"
	bashDefault = "bash -e {0}"
	shNamed     = "sh -e {0}"
)

// shellOf finds the shell for what `shell` says; "" is the default.
func shellOf(name, file string, pos workflow.Pos) (shell, error) {
	plain := func(s string) string { return s }
	switch name {
	case "":
		return shell{bashDefault, bashDefault, ".sh", shNamed, plain}, nil
	case "bash":
		return shell{bashNamed, bashNamed, ".sh", "", plain}, nil
	case "sh":
		return shell{shNamed, shNamed, ".sh", "", plain}, nil
	case "python":
		return shell{"python {0}", "python {0}", ".py", "python3 {0}", plain}, nil
	case "pwsh", "powershell":
		format := name + ` -command ". '{0}'"`
		return shell{format, format, ".ps1", "", powerShell}, nil
	}
	if !strings.Contains(name, "{0}") {
		return shell{}, workflowError(file, pos,
			"shell: invalid shell option '%s'. Shell must be a valid built-in (bash, sh, python, pwsh) or a format string containing '{0}'", excerpt(name))
	}
	sh := shell{name, name, extOf(name), "", plain}
	if sh.ext == ".ps1" {
		sh.wrap = powerShell
	}
	return sh, nil
}

// extOf is the extension of the script of a shell that was given as a command line.
func extOf(format string) string {
	program, _, _ := strings.Cut(format, " ")
	switch program[strings.LastIndexByte(program, '/')+1:] {
	case "bash", "sh":
		return ".sh"
	case "python", "python3":
		return ".py"
	case "pwsh", "powershell":
		return ".ps1"
	}
	return ""
}

// powerShell makes a script stop at its first error and end with the status of its last program.
func powerShell(script string) string {
	return "$ErrorActionPreference = 'stop'\n" + script + "\n" +
		"if ((Test-Path -LiteralPath variable:\\LASTEXITCODE)) { exit $LASTEXITCODE }\n"
}

// args splits a command line into arguments and puts the script's path in.
func args(format, script string) []string {
	list := splitArgs(format)
	for i := range list {
		list[i] = strings.ReplaceAll(list[i], "{0}", script)
	}
	return list
}

// splitArgs splits a command line into arguments. Double quotes keep spaces together, and a backslash before a double
// quote makes it a character.
func splitArgs(format string) []string {
	var list []string
	var word strings.Builder
	quoted, started := false, false
	end := func() {
		if started {
			list = append(list, word.String())
		}
		word.Reset()
		started = false
	}
	for i := 0; i < len(format); i++ {
		switch c := format[i]; {
		case c == '\\' && i+1 < len(format) && format[i+1] == '"':
			word.WriteByte('"')
			started = true
			i++
		case c == '"':
			quoted, started = !quoted, true
		case (c == ' ' || c == '\t' || c == '\n') && !quoted:
			end()
		default:
			word.WriteByte(c)
			started = true
		}
	}
	end()
	return list
}
