#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Write the trimmed vmlinux.h: the few kernel types that the XDP program uses, and what they refer to.

usage: trim-vmlinux.py [DUMP] > vmlinux.h

Without DUMP the running kernel's types are read with bpftool; DUMP is the output of
`bpftool btf dump file /sys/kernel/btf/vmlinux format c`. To use one more kernel type, name it in ROOTS
and run `make vmlinux`.

The result depends on the types alone: it is written in the order of ROOTS, each type after those it
needs, whatever the order in the dump.
"""

import re
import subprocess
import sys

# A name with a tag ("struct iphdr", "enum xdp_action"), a typedef ("__u8"), or a constant (upper case), which
# stands for the whole enum that holds it: the UAPI flags are anonymous enums.
ROOTS = """
    __u8 __u16 __u32 __u64 __s8 __s16 __s32 __s64 bool
    __be16 __be32 __be64 __le16 __le32 __le64 __sum16 __wsum
    struct:ethhdr struct:vlan_hdr struct:arphdr struct:iphdr struct:ipv6hdr struct:icmphdr
    struct:tcphdr struct:udphdr IPPROTO_TCP
    struct:xdp_md enum:xdp_action
    enum:bpf_map_type BPF_ANY BPF_F_MMAPABLE BPF_F_BROADCAST
    struct:bpf_fib_lookup BPF_FIB_LOOKUP_DIRECT BPF_FIB_LKUP_RET_SUCCESS
""".split()

HEADER = """\
/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The kernel types that the XDP program uses, and no others. Generated from the kernel's BTF by
 * trim-vmlinux.py (`make vmlinux`); do not edit, name the type you miss in ROOTS there instead.
 *
 * Unlike a whole vmlinux.h this one does not set preserve_access_index on its structs: they are all user
 * API (packet headers, xdp_md, bpf_fib_lookup), whose layout is the same in every kernel, so nothing has
 * to be relocated at load time. The bit fields are those of a little-endian machine. A constant listed
 * here may be newer than the kernel that the program runs on.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__
"""

FOOTER = "\n#endif /* __VMLINUX_H__ */\n"

LIMIT = 15_000  # bytes; more means that a root has dragged in the kernel's own structs


def dump():
    command = ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "c"]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    except FileNotFoundError:
        sys.exit("trim-vmlinux.py: bpftool is missing: install the package bpftool")
    except subprocess.CalledProcessError as error:
        sys.exit(f"trim-vmlinux.py: '{' '.join(command)}' failed with exit code {error.returncode}")


def declarations(text):
    """The top-level declarations: each starts in column 0 and ends with the ';' that closes its braces."""
    lines, depth = [], 0
    for line in text.splitlines():
        if not lines and (not line.strip() or line.startswith("#")):
            continue
        lines.append(line)
        depth += line.count("{") - line.count("}")
        if depth == 0 and line.rstrip().endswith(";"):
            yield "\n".join(lines)
            lines = []


def index(text):
    """Two maps: name -> full declaration, and enum constant -> name."""
    declared, constants = {}, {}
    for decl in declarations(text):
        tagged = re.match(r"(struct|union|enum)(?:\s+(\w+))?\s*\{", decl)
        if tagged:
            kind, tag = tagged.groups()
            body = re.findall(r"^\t(\w+) = ", decl, re.MULTILINE) if kind == "enum" else []
            name = f"{kind}:{tag}" if tag else f"enum:({body[0]})" if body else None
            if name is None:
                continue
            for constant in body:
                constants.setdefault(constant, name)
        elif decl.startswith("typedef"):
            name = re.search(r"\(\*(\w+)\)|(\w+)(?:\[\d*\])*;$", decl)
            name = name and (name[1] or name[2])
        else:  # a forward declaration, a function
            continue
        if name:
            declared.setdefault(name, decl)
    return declared, constants


def needs(name, decl, declared):
    """The declared names that `decl` refers to, in their order, and whether only by a pointer.

    A typedef's name is followed by what it declares; a member's own name (icmphdr's `code`) is not.
    """
    for match in re.finditer(r"\b(struct|union|enum)\s+(\w+)(\s*\*)?|\b([A-Za-z_]\w*)(?=\s+[\w*(])", decl):
        kind, tag, pointer, word = match.groups()
        found = f"{kind}:{tag}" if kind else word
        if found != name and found in declared:
            yield found, bool(pointer)


def trimmed(text):
    declared, constants = index(text)
    out, done = [], set()

    def emit(name):
        if name in done:
            return
        done.add(name)
        for needed, pointer in needs(name, declared[name], declared):
            if pointer and needed not in done:
                out.append(needed.replace(":", " ") + ";\n")
            elif not pointer:
                emit(needed)
        out.append(declared[name] + "\n")

    missing = []
    for root in ROOTS:
        name = constants.get(root, root)
        if name in declared:
            emit(name)
        else:
            missing.append(root.replace(":", " "))
    if missing:
        sys.exit(f"trim-vmlinux.py: not in this kernel's BTF: {', '.join(missing)}")

    # One-line typedefs stand together, everything else has an empty line around it.
    lines, previous = [HEADER], ""
    for decl in out:
        if not (decl.startswith("typedef") and previous.startswith("typedef")):
            lines.append("\n")
        lines.append(decl)
        previous = decl
    return "".join(lines) + FOOTER


def main():
    if len(sys.argv) > 2 or any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit(__doc__.strip())
    if len(sys.argv) == 2:
        with open(sys.argv[1], encoding="ascii") as file:
            text = file.read()
    else:
        text = dump()
    result = trimmed(text)
    if len(result) > LIMIT:
        sys.exit(f"trim-vmlinux.py: {len(result)} bytes, more than {LIMIT}: a root drags in too much")
    sys.stdout.write(result)


if __name__ == "__main__":
    main()
