#include "tests/project/rooms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/project/layering.h"

namespace shardproof::project {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr const char* kHead = "# Rooms\n\n| room | holds | may include |\n| --- | --- | --- |\n";

TEST(Rooms, AreReadWithTheirArrows) {
  const std::string document = std::string(kHead) +
                               "| `ops/` | mathematics | |\n"
                               "| `emu/a/` | this, and that | `ops/` |\n"
                               "| `emu/b.cpp` | one file | `emu/a/`, `ops/x.h` |\n"
                               "\nAfter the table | is `prose/`.\n";

  const std::vector<Room> rooms = rooms_in(document);

  ASSERT_THAT(rooms, SizeIs(3));
  EXPECT_EQ(rooms[0].path, "ops/");
  EXPECT_THAT(rooms[0].may_include, IsEmpty());
  EXPECT_THAT(rooms[1].may_include, ElementsAre("ops/"));
  EXPECT_EQ(rooms[2].path, "emu/b.cpp");
  EXPECT_THAT(rooms[2].may_include, ElementsAre("emu/a/", "ops/x.h"));
}

TEST(Rooms, AreNotGuessedFromARowOfAnotherForm) {
  for (const std::string row :
       {"| `ops/` | mathematics |", "| `ops/` | | |", "| ops/ | mathematics | |",
        "| `ops/` | mathematics | all of `emu/` |", "| `ops/`, `emu/` | both | |", "| `ops/` | mathematics | | |"}) {
    EXPECT_THROW(static_cast<void>(rooms_in(kHead + row + "\n")), std::runtime_error) << row;
  }
}

TEST(Rooms, AreNotFoundInADocumentWithoutThem) {
  EXPECT_THROW(static_cast<void>(rooms_in("")), std::runtime_error);
  EXPECT_THROW(static_cast<void>(rooms_in("| folder | knows |\n| --- | --- |\n| `ops/` | mathematics |\n")),
               std::runtime_error);
  EXPECT_THROW(static_cast<void>(rooms_in(kHead)), std::runtime_error);
}

TEST(Arrows, ThatLeadDownOrNowhereAreWrong) {
  const std::vector<Room> rooms{{"ops/", {}}, {"emu/a/", {"ops/", "emu/b/"}}, {"emu/b/", {"emu/a/x.h", "gone/"}}};

  const std::vector<std::string> wrong = wrong_arrows(rooms);

  EXPECT_THAT(wrong, ElementsAre(HasSubstr("emu/a/ -> emu/b/"), HasSubstr("emu/b/ -> gone/")));
}

TEST(Arrows, OfARoomThatStandsTwiceAreWrong) {
  EXPECT_THAT(wrong_arrows({{"ops/", {}}, {"ops/", {}}}), ElementsAre("ops/ stands twice"));
}

TEST(Arrows, ThatAreTakenOutOfTheDrawingAreMissed) {
  const SourceFile file{"emu/a/x.cpp", "#include \"ops/matrix.h\"\n"};

  const std::vector<Violation> drawn = check_layering(file, {{"ops/", {}}, {"emu/a/", {"ops/"}}});
  const std::vector<Violation> taken_out = check_layering(file, {{"ops/", {}}, {"emu/a/", {}}});

  EXPECT_THAT(drawn, IsEmpty());
  ASSERT_THAT(taken_out, SizeIs(1));
  EXPECT_THAT(to_string(taken_out.front()), HasSubstr("emu/a/x.cpp:1: no arrow is drawn to ops/matrix.h"));
}

TEST(Arrows, OfAFileAddToThoseOfItsFolder) {
  const std::vector<Room> rooms{{"ops/", {}}, {"emu/b/", {}}, {"emu/a/", {"ops/"}}, {"emu/a/x.cpp", {"emu/b/"}}};
  const std::string includes = "#include \"ops/matrix.h\"\n#include \"emu/b/y.h\"\n";

  const std::vector<Violation> of_the_file = check_layering({"emu/a/x.cpp", includes}, rooms);
  const std::vector<Violation> of_another = check_layering({"emu/a/z.cpp", includes}, rooms);

  EXPECT_THAT(of_the_file, IsEmpty());
  ASSERT_THAT(of_another, SizeIs(1));
  EXPECT_EQ(of_another.front().line, 2);
}

}  // namespace
}  // namespace shardproof::project
