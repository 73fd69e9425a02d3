package llm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// actionName is what a remote action may be called: owner/name, perhaps a path, and a ref.
var actionName = lazily(`^([A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}(?:/[A-Za-z0-9_./-]{1,200})?)@([A-Za-z0-9_./-]{1,200})$`)

// Replacement is what can stand in the place of a step that uses an action which is not to be had. It is for somebody to read:
// nothing runs it.
type Replacement struct {
	Steps string   // YAML, to be put in the place of the step; "": there is nothing honest to put there
	Notes []string // what it does not do
}

// Native knows the replacements of a few well-known actions, which no model had a hand in. uses is the whole
// owner/name@ref, with the step's inputs; both are hostile, and the inputs get into the step as its environment alone. ok is
// false where the action is not known.
func Native(uses string, with map[string]string) (r Replacement, ok bool) {
	m := actionName().FindStringSubmatch(uses)
	if m == nil {
		return r, false
	}
	at := slices.IndexFunc(natives(), func(n native) bool {
		return slices.ContainsFunc(strings.Split(n.actions, " "), func(name string) bool { return strings.EqualFold(name, m[1]) })
	})
	if at < 0 {
		return r, false
	}
	n := natives()[at]
	r.Notes = slices.Clone(n.notes)
	if n.script == "" {
		return r, true
	}
	env := map[string]string{}
	for _, pair := range strings.Fields(n.inputs) {
		input, name, _ := strings.Cut(pair, "=")
		if env[name] == "" {
			env[name] = firstOf(Strip(with[input]), 200)
		}
	}
	if n.ref != "" && env[n.ref] == "" {
		env[n.ref] = m[2]
	}
	for _, input := range slices.Sorted(maps.Keys(with)) {
		if !slices.ContainsFunc(strings.Fields(n.inputs), func(p string) bool { return strings.HasPrefix(p, input+"=") }) {
			r.Notes = append(r.Notes, fmt.Sprintf("The input %s is not looked at.", Strip(firstOf(input, 60))))
		}
	}
	r.Steps = StepYAML("In place of "+uses, env, n.script)
	return r, true
}

// StepYAML is a step that runs a script with bash, as a list of one. The environment's values may be anything; the script is text
// without carriage returns.
func StepYAML(name string, env map[string]string, script string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "- name: %s\n", quoted(name))
	if len(env) > 0 {
		b.WriteString("  env:\n")
		for _, k := range slices.Sorted(maps.Keys(env)) {
			fmt.Fprintf(&b, "    %s: %s\n", k, quoted(env[k]))
		}
	}
	b.WriteString("  shell: bash\n  run: |\n")
	for line := range strings.SplitSeq(strings.TrimSpace(script), "\n") {
		if line != "" {
			line = "    " + line
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// quoted is a YAML string in double quotes, which may hold whatever JSON's may.
func quoted(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a string: cannot be
	}
	return strings.TrimSpace(b.String())
}

// native is what replaces some actions.
type native struct {
	actions string // owner/name, separated by spaces
	inputs  string // input=VARIABLE, separated by spaces; of two for one variable the first that is set counts
	ref     string // the variable that the action's ref is the default of
	script  string // "": nothing can stand in its place
	notes   []string
}

const noCache = "It keeps nothing in a cache."

// platform sets arch as most projects name it in their files.
const platform = `case $(uname -m) in
  x86_64) arch=%s ;;
  aarch64) arch=%s ;;
  *) echo "there is no build for $(uname -m)" >&2; exit 1 ;;
esac
`

// natives are the replacements that are known. What they fetch is checked against the project's own list of hashes where there
// is one; where a project's installer is run unchecked, a note says so.
func natives() []native {
	own := []string{"It is a program that speaks to the server's own services, and no script does that. Keep a copy of it: actions-mirror names a folder of repositories that actions are taken from."}
	unchecked := func(from string) string {
		return "The installer of " + from + " is run as it comes, without a hash to check it against."
	}
	return []native{
		{actions: "actions/cache actions/cache/save actions/cache/restore actions/upload-artifact actions/download-artifact actions/upload-pages-artifact actions/github-script", notes: own},
		{actions: "actions/setup-node", inputs: "node-version=VERSION node-version-file=VERSION_FILE", notes: []string{noCache}, script: fmt.Sprintf(platform, "x64", "arm64") + `
if [ -z "$VERSION" ] && [ -n "$VERSION_FILE" ]; then VERSION=$(tr -d ' \n\r' <"$VERSION_FILE"); fi
v=$(curl -fsSL https://nodejs.org/dist/index.json | jq -r --arg v "${VERSION#v}" '
  map(select(
    if $v == "" or $v == "lts/*" then .lts != false
    elif $v == "latest" or $v == "node" or $v == "current" then true
    else (.version | ltrimstr("v") | . == $v or startswith(($v | rtrimstr(".x")) + ".")) end)) | .[0].version // empty')
[ -n "$v" ] || { echo "Node.js has no version $VERSION" >&2; exit 1; }
mkdir -p "$RUNNER_TEMP/node" && cd "$RUNNER_TEMP/node"
file="node-$v-linux-$arch.tar.xz"
curl -fsSLO "https://nodejs.org/dist/$v/$file"
curl -fsSL "https://nodejs.org/dist/$v/SHASUMS256.txt" | grep -F "  $file" | sha256sum -c -
tar -xJf "$file" --strip-components=1
echo "$PWD/bin" >>"$GITHUB_PATH"`},
		{actions: "actions/setup-go", inputs: "go-version=VERSION go-version-file=VERSION_FILE", notes: []string{noCache}, script: fmt.Sprintf(platform, "amd64", "arm64") + `
if [ -z "$VERSION" ] && [ -n "$VERSION_FILE" ]; then VERSION=$(sed -n 's/^go //p' "$VERSION_FILE"); fi
read -r file sum < <(curl -fsSL 'https://go.dev/dl/?mode=json&include=all' | jq -r --arg v "$VERSION" --arg arch "$arch" '
  map(select(.stable and ($v == "" or $v == "stable" or .version == "go" + $v or (.version | startswith("go" + ($v | rtrimstr(".x")) + ".")))))
  | .[0].files[]? | select(.os == "linux" and .arch == $arch and .kind == "archive") | .filename + " " + .sha256') ||
  { echo "Go has no version $VERSION" >&2; exit 1; }
mkdir -p "$RUNNER_TEMP/go" && cd "$RUNNER_TEMP/go"
curl -fsSLO "https://go.dev/dl/$file"
echo "$sum  $file" | sha256sum -c -
tar -xzf "$file" --strip-components=1
echo "$PWD/bin" >>"$GITHUB_PATH"
echo "$HOME/go/bin" >>"$GITHUB_PATH"`},
		{actions: "actions/setup-python", inputs: "python-version=VERSION", notes: []string{noCache, "Python is in a virtual environment, and is one of the builds that uv fetches.", unchecked("uv")}, script: `
curl -fsSL https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$RUNNER_TEMP/uv" UV_NO_MODIFY_PATH=1 sh
"$RUNNER_TEMP/uv/uv" venv --seed --python "${VERSION:-3}" "$RUNNER_TEMP/python"
echo "$RUNNER_TEMP/python/bin" >>"$GITHUB_PATH"
echo "VIRTUAL_ENV=$RUNNER_TEMP/python" >>"$GITHUB_ENV"`},
		{actions: "astral-sh/setup-uv", inputs: "version=VERSION", notes: []string{noCache, unchecked("uv")}, script: `
curl -fsSL "https://astral.sh/uv/${VERSION:+$VERSION/}install.sh" | env UV_INSTALL_DIR="$RUNNER_TEMP/uv" UV_NO_MODIFY_PATH=1 sh
echo "$RUNNER_TEMP/uv" >>"$GITHUB_PATH"`},
		{actions: "actions/setup-java", inputs: "java-version=VERSION", notes: []string{noCache, "It is Debian's OpenJDK, whatever distribution says, of a version that the image's Debian has."}, script: `
sudo apt-get update
sudo apt-get install -y --no-install-recommends "openjdk-${VERSION:-17}-jdk-headless"
home=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
echo "JAVA_HOME=$home" >>"$GITHUB_ENV"
echo "$home/bin" >>"$GITHUB_PATH"`},
		{actions: "actions/setup-dotnet", inputs: "dotnet-version=VERSION", notes: []string{noCache, unchecked(".NET")}, script: `
curl -fsSL https://dot.net/v1/dotnet-install.sh -o "$RUNNER_TEMP/dotnet-install.sh"
bash "$RUNNER_TEMP/dotnet-install.sh" --channel "${VERSION%.x}" --install-dir "$RUNNER_TEMP/dotnet"
echo "DOTNET_ROOT=$RUNNER_TEMP/dotnet" >>"$GITHUB_ENV"
echo "$RUNNER_TEMP/dotnet" >>"$GITHUB_PATH"`},
		{actions: "dtolnay/rust-toolchain", inputs: "toolchain=TOOLCHAIN components=COMPONENTS targets=TARGETS target=TARGETS", ref: "TOOLCHAIN", notes: []string{noCache, unchecked("rustup")}, script: rustup},
		{actions: "actions-rs/toolchain actions-rust-lang/setup-rust-toolchain", inputs: "toolchain=TOOLCHAIN components=COMPONENTS target=TARGETS", notes: []string{noCache, unchecked("rustup")}, script: rustup},
		{actions: "pnpm/action-setup", inputs: "version=VERSION", notes: []string{"packageManager of package.json is not looked at."}, script: `
npm install --global --prefix "$RUNNER_TEMP/pnpm" "pnpm@${VERSION:-latest}"
echo "$RUNNER_TEMP/pnpm/bin" >>"$GITHUB_PATH"`},
		{actions: "oven-sh/setup-bun", inputs: "bun-version=VERSION", script: `
npm install --global --prefix "$RUNNER_TEMP/bun" "bun@${VERSION:-latest}"
echo "$RUNNER_TEMP/bun/bin" >>"$GITHUB_PATH"`},
		{actions: "hashicorp/setup-terraform", inputs: "terraform_version=VERSION", notes: []string{"There is no wrapper about terraform, and so no outputs of it.", "The version has to be a whole one, such as 1.9.8."}, script: fmt.Sprintf(platform, "amd64", "arm64") + `
mkdir -p "$RUNNER_TEMP/terraform" && cd "$RUNNER_TEMP/terraform"
v=${VERSION:-$(curl -fsSL https://checkpoint-api.hashicorp.com/v1/check/terraform | jq -r .current_version)}
file="terraform_${v}_linux_$arch.zip"
curl -fsSLO "https://releases.hashicorp.com/terraform/$v/$file"
curl -fsSL "https://releases.hashicorp.com/terraform/$v/terraform_${v}_SHA256SUMS" | grep -F "  $file" | sha256sum -c -
unzip -o -q "$file"
echo "$PWD" >>"$GITHUB_PATH"`},
	}
}

const rustup = `
curl --proto '=https' --tlsv1.2 -fsSL https://sh.rustup.rs -o "$RUNNER_TEMP/rustup.sh"
sh "$RUNNER_TEMP/rustup.sh" -y --no-modify-path --profile minimal --default-toolchain "${TOOLCHAIN:-stable}"
for c in ${COMPONENTS//,/ }; do "$HOME/.cargo/bin/rustup" component add "$c"; done
for t in ${TARGETS//,/ }; do "$HOME/.cargo/bin/rustup" target add "$t"; done
echo "$HOME/.cargo/bin" >>"$GITHUB_PATH"`
