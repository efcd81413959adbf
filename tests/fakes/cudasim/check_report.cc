/* cudasim's checker: what it says, and the names it says it with. Each error once for its place in the source, on stderr and, if
 * CUDASIM_CHECK names a file, at the end of that file, which also gets a line of totals when the program ends.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "check_state.h"

namespace cusim
{
namespace check
{

std::string format(const char *text, ...)
{
    char line[2048];
    va_list list;
    va_start(list, text);
    vsnprintf(line, sizeof line, text, list);
    va_end(list);
    return line;
}

/* ---- this program's symbols, read from its own file ---- */

namespace
{

struct image {
    std::string path;
    uintptr_t base = 0, constant_begin = 0, constant_end = 0;
    std::vector<symbol> symbols; /* by address */

    image()
    {
        Dl_info info = {};
        struct link_map *map = NULL;
        if (!dladdr1((void *)&find_symbol, &info, (void **)&map, RTLD_DL_LINKMAP)) return;
        base = map->l_addr;
        char program[4096] = "";
        if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return;
        path = map->l_name && map->l_name[0] ? map->l_name : program;
        int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat st;
        if (file < 0 || fstat(file, &st) != 0) return;
        void *all = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        close(file);
        if (all == MAP_FAILED) return;
        read((const char *)all);
        munmap(all, (size_t)st.st_size);
    }

    void read(const char *file)
    {
        const Elf64_Ehdr *head = (const Elf64_Ehdr *)file;
        const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + head->e_shoff);
        const char *names = file + sections[head->e_shstrndx].sh_offset;
        for (int i = 0; i < head->e_shnum; i++) {
            const Elf64_Shdr &s = sections[i];
            bool constant =
                strncmp(names + s.sh_name, ".rodata", 7) == 0 || strncmp(names + s.sh_name, ".data.rel.ro", 12) == 0;
            if (constant) {
                uintptr_t begin = base + s.sh_addr, end = begin + s.sh_size;
                constant_begin = constant_begin ? std::min(constant_begin, begin) : begin;
                constant_end = std::max(constant_end, end);
            }
            if (s.sh_type != SHT_SYMTAB) continue;
            const Elf64_Sym *table = (const Elf64_Sym *)(file + s.sh_offset);
            const char *strings = file + sections[s.sh_link].sh_offset;
            for (size_t k = 0; k < s.sh_size / sizeof *table; k++) {
                int type = ELF64_ST_TYPE(table[k].st_info);
                if ((type != STT_OBJECT && type != STT_FUNC) || !table[k].st_size || table[k].st_shndx >= head->e_shnum)
                    continue;
                bool writable = sections[table[k].st_shndx].sh_flags & SHF_WRITE;
                symbols.push_back({base + table[k].st_value, table[k].st_size, type == STT_FUNC, writable,
                                   strings + table[k].st_name});
            }
        }
        std::sort(symbols.begin(), symbols.end(), [](const symbol &a, const symbol &b) { return a.begin < b.begin; });
    }
};

const image &self()
{
    static image it;
    return it;
}

} // namespace

const symbol *find_symbol(uintptr_t at)
{
    const std::vector<symbol> &all = self().symbols;
    auto next = std::upper_bound(all.begin(), all.end(), at, [](uintptr_t a, const symbol &s) { return a < s.begin; });
    if (next == all.begin()) return NULL;
    --next;
    return at - next->begin < next->bytes ? &*next : NULL;
}
bool is_constant(uintptr_t at) { return at >= self().constant_begin && at < self().constant_end; }

std::string readable(const std::string &name)
{
    int status = 1;
    char *text = abi::__cxa_demangle(name.c_str(), NULL, NULL, &status);
    std::string out = status == 0 ? text : name;
    free(text);
    return out;
}

/* ---- code ---- */

place_of_code codes[1 << CODE_BITS];

/* "file:line in function", inlined ones with their callers, by addr2line, which comes with the compiler. */
std::string source_of(const void *code)
{
    static std::map<const void *, std::string> known;
    if (!code) return "";
    auto found = known.find(code);
    if (found != known.end()) return found->second;
    std::string out;
    const symbol *s = find_symbol((uintptr_t)code);
    if (s && s->function) {
        std::string command = format("addr2line -Cfips -e %s 0x%llx 2>/dev/null", self().path.c_str(),
                                     (unsigned long long)((uintptr_t)code - self().base - 1));
        FILE *pipe = popen(command.c_str(), "re");
        char line[1024];
        for (int i = 0; pipe && i < 4 && fgets(line, sizeof line, pipe); i++) {
            line[strcspn(line, "\n")] = '\0';
            const char *name = strncmp(line, " (inlined by) ", 14) == 0 ? line + 14 : line;
            const char *at = strstr(name, " at ");
            std::string file = at ? at + 4 : name;
            out += (out.empty() ? "" : " < ") + file.substr(0, file.find(" (discriminator"));
            if (at)
                out += " in " + std::string(name, strcspn(name, "(<") < (size_t)(at - name) ? strcspn(name, "(<")
                                                                                            : (size_t)(at - name));
        }
        if (pipe) pclose(pipe);
        if (out.empty()) out = readable(s->name);
    }
    return known[code] = out;
}

bool same_place(const void *a, const void *b) { return a == b || source_of(a) == source_of(b); }

std::string thread_name(int thread)
{
    return format("thread %d of block (%u,%u,%u)", thread, here.block.x, here.block.y, here.block.z);
}

/* ---- reports ---- */

namespace
{

struct totals {
    std::map<std::tuple<std::string, const void *, const void *>, uint64_t> seen;
    std::set<std::string> texts;
    uint64_t errors = 0;
    void write(const std::string &line)
    {
        fprintf(stderr, "%s\n", line.c_str());
        fflush(stderr);
        const char *path = getenv("CUDASIM_CHECK");
        FILE *f = path ? fopen(path, "a") : NULL;
        if (!f) return;
        fprintf(f, "%s\n", line.c_str());
        fclose(f);
    }
    ~totals()
    {
        write(format("simcheck: %llu launches, %llu accesses checked, %llu errors at %zu places",
                     (unsigned long long)launches, (unsigned long long)accesses, (unsigned long long)errors,
                     texts.size()));
    }
};
totals &all()
{
    static totals t;
    return t;
}
struct at_start { /* so that there are totals without any error, too */
    at_start() { (void)all(); }
} started;

} // namespace

bool reported() { return all().errors > 0; }

void report(const char *what, const void *code, const void *earlier, const std::string &text)
{
    totals &t = all();
    t.errors++;
    if (t.seen[std::make_tuple(std::string(what), code, earlier)]++) return;
    bool was = inside;
    inside = false;
    std::string place = source_of(code), other = source_of(earlier);
    std::string key = std::string(what) + place + other;
    /* The same place in the source may be several in the code. */
    if (t.texts.size() < 100 && t.texts.insert(key).second) {
        std::string line = format("simcheck: %s: %s", what, was ? who.launch.name : "a library");
        line += ": " + text;
        if (!place.empty()) line += "\n    at " + place;
        if (!other.empty()) line += "\n    before at " + other;
        t.write(line);
    }
    inside = was;
}

void wrong_barrier(const void *where, const char *text, ...)
{
    char line[1024];
    va_list list;
    va_start(list, text);
    vsnprintf(line, sizeof line, text, list);
    va_end(list);
    report("divergent barrier", where, NULL, line);
}

} // namespace check
} // namespace cusim
